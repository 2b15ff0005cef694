"""From resolved deployments to a job: refuse what cannot work, write the script, hand it over."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.errors import ConfigError
from aegis.fleet.endpoints import is_own
from aegis.fleet.jobs import is_final
from aegis.fleet.remote_files import TransportFiles
from aegis.fleet.request import Place, job_request
from aegis.preflight.files import Files, LocalFiles, UnseenFiles
from aegis.preflight.finding import Finding, refuse
from aegis.preflight.report import findings
from aegis.runs import ENDED
from aegis.schedulers.base import SECRET_NAMES, JobRequest, Scheduler, Submission
from aegis.spec.platforms import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from aegis.fleet.jobs import Jobs
    from aegis.fleet.status import JobView
    from aegis.runs import Manifest
    from aegis.schedulers.base import After
    from aegis.schedulers.transport import Transport
    from aegis.spec.resolve import Resolved

LOOK_ROUND = 'uname -n; for c in sbatch qsub; do command -v "$c" >/dev/null && echo "$c"; done; true'


class Prepared(Struct, frozen=True):
    """A job that may be submitted."""

    request: JobRequest
    script: str  # what `--dry-run` prints
    scheduler: Scheduler
    secrets: dict[str, str]
    lasting: bool = False  # it keeps a service alive


def far_site(transport: Transport, environ: Mapping[str, str]) -> Site:
    """Return the far side as a site to recognise; profiles are those of this machine."""
    answer = transport.run(["bash", "-c", LOOK_ROUND]).out.split()
    name, commands = (answer[0] if answer else ""), set(answer[1:])
    return Site(Site.here(environ).folders, name, lambda command: command in commands)


def prepare(
    resolved: Sequence[Resolved],
    jobs: Jobs,
    *,
    name: str | None = None,
    force: bool = False,
    warn: Callable[[str], None],
    after: After | None = None,
) -> Prepared:
    """Return the job that serves some deployments; nothing is written anywhere.

    Args:
        resolved: one for an ordinary job; each of several becomes a component with nodes of its own.
        jobs: those that it will be one of; secrets are found in their environment.
        name: of the job (default: the first deployment's).
        force: submit what will probably fail.
        warn: gets a line for each doubt.
        after: the job that it takes over from.

    Raises:
        AegisError: it cannot work, with every reason that is known.
    """
    first = resolved[0].deployment
    scheduler = jobs.scheduler(f"{first.scheduler}://")
    place = Place.here() if jobs.is_here else Place.there(jobs.transport, first.aegis_env)
    request = job_request(resolved, place, name, after)
    refuse(_findings(resolved, request, _files(scheduler, jobs, place), jobs.environ), force, warn)
    secrets = {name: jobs.environ[name] for name in SECRET_NAMES if jobs.environ.get(name)}
    if token := resolved[0].hf_token:
        secrets["HF_TOKEN"] = token.reveal()
    return Prepared(request, scheduler.render(request), scheduler, secrets, first.keep_alive)


def _files(scheduler: Scheduler, jobs: Jobs, place: Place) -> Files:
    """Return the files of the machine that has the scheduler; nobody can look at those of another site."""
    if not jobs.is_here:
        return TransportFiles(jobs.transport, place)
    return LocalFiles() if jobs.present(scheduler.name) else UnseenFiles()


def _findings(
    resolved: Sequence[Resolved], request: JobRequest, files: Files, environ: Mapping[str, str]
) -> Iterator[Finding]:
    for each, component in zip(resolved, request.components, strict=True):
        yield from findings(each, component.resources.nodes, files, environ)


def submit(prepared: Prepared, jobs: Jobs) -> Submission:
    """Submit a prepared job.

    Raises:
        ConfigError: another job, which waits or runs, keeps its endpoints file, or has the name of its service.
        SiteError: the scheduler refuses, or does not answer.
    """
    request = prepared.request
    files = [each.endpoints_file for each in request.components if not is_own(each.endpoints_file)]
    if not request.after:  # else these are those of the job that it takes over from
        if request.service and prepared.lasting:
            _refuse_named(request.service, jobs)
        if files:
            _refuse_kept(files, jobs)
    return prepared.scheduler.submit(prepared.request, prepared.script, prepared.secrets)


def _refuse_kept(files: Sequence[str], jobs: Jobs) -> None:
    """Refuse files that a job keeps which has not ended: two writers would take turns in them."""
    real = os.path.realpath if jobs.is_here else str
    wanted = set(map(real, files))
    for view in _live(jobs, lambda each: bool(each.endpoints_file and real(each.endpoints_file) in wanted)):
        raise ConfigError(
            f"{view.endpoints_file} is the endpoints file of {view.job_id}, which is {view.model_status}",
            hint="choose another with --endpoints-file, or `aegis shutdown` that job",
        )


def _refuse_named(service: str, jobs: Jobs) -> None:
    """Refuse the name of a service that another job has which has not ended: who asks for it would get either."""
    for view in _live(jobs, lambda each: each.service == service):
        raise ConfigError(
            f"the service `{service}` is there already: {view.job_id}, which is {view.model_status}",
            hint="choose another name with --service, or `aegis shutdown` that one",
        )


def _live(jobs: Jobs, is_meant: Callable[[Manifest], bool]) -> Iterator[JobView]:
    """Yield those of the jobs that are meant which have not ended."""
    rivals = [each for each in jobs.all() if not is_final(each) and is_meant(each)]
    if not rivals:
        return
    from aegis.fleet.status import views  # noqa: PLC0415 - start-up time

    yield from (view for view in views(jobs, rivals, ask_servers=False) if view.model_status not in ENDED)
