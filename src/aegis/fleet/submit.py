"""From resolved deployments to a job: refuse what cannot work, write the script, hand it over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.fleet.endpoints import is_own
from aegis.fleet.jobs import Jobs
from aegis.fleet.prepare import refuse_shared_endpoints
from aegis.fleet.remote_files import TransportFiles
from aegis.fleet.request import Place, job_request
from aegis.preflight.files import Files, LocalFiles, UnseenFiles
from aegis.preflight.finding import Finding, refuse
from aegis.preflight.report import findings
from aegis.schedulers.base import SECRET_NAMES, JobRequest, Scheduler, Submission
from aegis.schedulers.transport import Here, Transport
from aegis.spec.platforms import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from aegis.spec.resolve import Resolved

LOOK_ROUND = 'uname -n; for c in sbatch qsub; do command -v "$c" >/dev/null && echo "$c"; done; true'


class Prepared(Struct, frozen=True):
    """A job that may be submitted."""

    request: JobRequest
    script: str  # what `--dry-run` prints
    scheduler: Scheduler
    secrets: dict[str, str]


def scheduler_for(name: str | None, transport: Transport, environ: Mapping[str, str]) -> Scheduler:
    """Return the scheduler of that name, at the end of a transport."""
    if name == "slurm":
        from aegis.schedulers.slurm import Slurm  # noqa: PLC0415 - only the one that is used

        return Slurm(transport, environ)
    if name == "pbs":
        from aegis.schedulers.pbs import Pbs  # noqa: PLC0415 - as above

        return Pbs(transport, environ)
    from aegis.schedulers.local import Local  # noqa: PLC0415 - as above

    return Local(environ)


def far_site(transport: Transport, environ: Mapping[str, str]) -> Site:
    """Return the far side as a site to recognise; profiles are those of this machine."""
    answer = transport.run(["bash", "-c", LOOK_ROUND]).out.split()
    name, commands = (answer[0] if answer else ""), set(answer[1:])
    return Site(Site.here(environ).folders, name, lambda command: command in commands)


def prepare(
    resolved: Sequence[Resolved],
    transport: Transport,
    environ: Mapping[str, str],
    *,
    name: str | None = None,
    force: bool = False,
    warn: Callable[[str], None],
) -> Prepared:
    """Return the job that serves some deployments; nothing is written anywhere.

    Args:
        resolved: one for an ordinary job; each of several becomes a component with nodes of its own.
        transport: where the scheduler is.
        environ: where secrets are found, and jobs of this user.
        name: of the job (default: the first deployment's).
        force: submit what will probably fail.
        warn: gets a line for each doubt.

    Raises:
        AegisError: it cannot work, with every reason that is known.
    """
    first = resolved[0].deployment
    scheduler = scheduler_for(first.scheduler, transport, transport.environ)
    here = isinstance(transport, Here)
    place = Place.here() if here else Place.there(transport, first.aegis_env)
    request = job_request(resolved, place, name)
    refuse(_findings(resolved, request, _files(scheduler, transport, place, environ), environ), force, warn)
    secrets = {name: environ[name] for name in SECRET_NAMES if environ.get(name)}
    if token := resolved[0].hf_token:
        secrets["HF_TOKEN"] = token.reveal()
    return Prepared(request, scheduler.render(request), scheduler, secrets)


def _files(scheduler: Scheduler, transport: Transport, place: Place, environ: Mapping[str, str]) -> Files:
    """Return the files of the machine that has the scheduler; nobody can look at those of another site."""
    if not isinstance(transport, Here):
        return TransportFiles(transport, place)
    return LocalFiles() if Jobs(environ, transport).present(scheduler.name) else UnseenFiles()


def _findings(
    resolved: Sequence[Resolved], request: JobRequest, files: Files, environ: Mapping[str, str]
) -> Iterator[Finding]:
    for each, component in zip(resolved, request.components, strict=True):
        yield from findings(each, component.resources.nodes, files, environ)


def submit(prepared: Prepared, environ: Mapping[str, str]) -> Submission:
    """Submit a prepared job.

    Raises:
        ConfigError: another live job keeps its endpoints file.
        SiteError: the scheduler refuses, or does not answer.
    """
    for component in prepared.request.components:
        if not is_own(component.endpoints_file):
            refuse_shared_endpoints(Path(component.endpoints_file), environ)
    return prepared.scheduler.submit(prepared.request, prepared.script, prepared.secrets)
