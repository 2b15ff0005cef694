"""The registries of a user's jobs that live, found by name, and the ways to them: here, or through ssh."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from aegis.errors import AegisError, NotFoundError, SiteError
from aegis.fleet.jobs import LOCAL
from aegis.fleet.registries import registry_of
from aegis.fleet.status import views
from aegis.fleet.ways import ways_of
from aegis.registry.client import TIMEOUT_SECONDS, RegistryClient
from aegis.registry.sources import Source, Way, directly
from aegis.runs import ENDED, index_folder, is_meant, unknown_job
from aegis.schedulers.ssh import Ssh
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from aegis.fleet.jobs import Jobs
    from aegis.registry.sources import Address
    from aegis.runs import Manifest
    from aegis.schedulers.transport import Transport

EVERY: Final = "jobs"  # the name of all jobs that live
ANSWER_SECONDS: Final = 60.0  # that a scheduler's word may be old
SETTLE_SECONDS: Final = (
    5.0  # so long after its last change a folder may have changed again at what counts as one moment
)


class Listed(Struct):
    """The jobs of one place when they were read last."""

    moment: int = 0  # of the index's last change, ns; 0: not known
    manifests: list[Manifest] = []


class JobSources:
    """The registries of the jobs that some names mean, now and later.

    A name is a handle, the name of a job, the service that jobs say they belong to, or `jobs` for all. Who takes over from
    a job that is meant is meant as well.

    Args:
        places: the jobs of this machine, or of several behind ssh.
        names: what is asked for.
    """

    def __init__(self, places: Sequence[Jobs], names: Collection[str]) -> None:
        self._places, self._names = tuple(places), tuple(names)
        self._listed = [Listed() for _ in places]
        self._known = False  # that every name means something

    def look(self) -> list[Source[Way]]:
        """Return the registries that there are.

        Raises:
            NotFoundError: at the first time, if a name means no job that ever was.
            SchedulerUnavailable: a place does not answer.
        """
        found: list[Source[Way]] = []
        meant: set[str] = set()
        for jobs, listed in zip(self._places, self._listed, strict=True):
            _read(jobs, listed)
            meant.update(name for name in self._names if choose(listed.manifests, [name]))
            chosen = choose(listed.manifests, self._names)
            found += [self._source(jobs, each) for each in _living(jobs, chosen) if each.registry_url]
        if not self._known:
            self._check(meant)
            self._known = True
        return found

    def _check(self, meant: Collection[str]) -> None:
        """Refuse what nobody has ever heard of."""
        manifests = [manifest for listed in self._listed for manifest in listed.manifests]
        for name in self._names:
            if name != EVERY and name not in meant:
                services = {each.service for each in manifests if each.service}
                raise NotFoundError(
                    f"there is no job and no service `{name}`",
                    hint=did_you_mean(name, services)
                    or unknown_job(name, [each.job for each in manifests]).hint,
                )

    def _source(self, jobs: Jobs, manifest: Manifest) -> Source[Way]:
        job = manifest.job.partition("://")[2]
        alone = len(self._places) == 1
        is_itself = alone and len(self._names) == 1 and is_meant(self._names[0], manifest.job)
        name = job if alone else f"{job}@{jobs.transport.name.rpartition('@')[2]}"
        return Source(
            name=name,
            at=manifest.registry_url or "",
            open=lambda: way_to_job(jobs.transport, manifest),
            prefix="" if is_itself else f"{name}/",
        )


def choose(manifests: Iterable[Manifest], names: Collection[str]) -> list[Manifest]:
    """Return the jobs that the names mean, and those that take over from them; pure.

    Args:
        manifests: oldest first.
        names: handles, names of jobs, services, or `jobs`.
    """
    chosen: dict[str, Manifest] = {}
    for each in manifests:
        if (
            EVERY in names
            or each.predecessor in chosen
            or any(name in {each.service, each.name} or is_meant(name, each.job) for name in names)
        ):
            chosen[each.job] = each
    return list(chosen.values())


@contextlib.contextmanager
def way_to_job(transport: Transport, manifest: Manifest) -> Iterator[Way]:
    """Yield the registry of a job, and how its servers are reached, for as long as both are held.

    Raises:
        SiteError: no way leads there.
    """
    with _reaching(transport) as reach:
        if reach is directly and _is_beyond(manifest):
            raise SiteError(
                f"its servers are reached from {manifest.host} alone", hint=f"--remote {manifest.host}"
            )
        with registry_of(transport, manifest, TIMEOUT_SECONDS) as client:
            yield Way(client, reach)


@contextlib.contextmanager
def way_to_registry(transport: Transport, host: str, port: int, token: str | None) -> Iterator[Way]:
    """Yield a registry over there, and how its servers are reached, for as long as both are held.

    Raises:
        SiteError: no way leads there.
    """
    with _reaching(transport) as reach, transport.forward(host, port) as (near, number):
        name = f"[{near}]" if ":" in near else near
        yield Way(RegistryClient(f"http://{name}:{number}", token), reach)


@contextlib.contextmanager
def _reaching(transport: Transport) -> Iterator[Callable[[Iterable[Address]], dict[Address, Address]]]:
    if not isinstance(transport, Ssh):
        yield directly
        return
    if not transport.is_alive:
        transport.run(["true"])  # connects anew
    with ways_of(transport) as ways:
        yield ways.reach


def _is_beyond(manifest: Manifest) -> bool:
    """Tell whether a job's servers listen for another machine alone."""
    here = os.uname().nodename.partition(".")[0].lower()
    return (
        manifest.job.startswith(f"{LOCAL}://")
        and bool(manifest.host)
        and manifest.host.partition(".")[0].lower() != here
    )


def _read(jobs: Jobs, listed: Listed) -> None:
    """Read the manifests of all jobs, or only those that can have changed where no job has come or gone."""
    try:
        moment = index_folder(jobs.environ).stat().st_mtime_ns if jobs.is_here else 0
    except OSError:
        moment = 0
    is_known = moment and moment == listed.moment and all(each.run_dir for each in listed.manifests)
    if is_known and time.time_ns() - moment > SETTLE_SECONDS * 1e9:
        listed.manifests = [each if each.state in ENDED else jobs.reload(each) for each in listed.manifests]
    else:
        listed.moment, listed.manifests = moment, jobs.all()


def _living(jobs: Jobs, manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return the jobs that have not ended, as their schedulers see it; where one is silent, its manifest counts."""
    living = [each for each in manifests if each.state not in ENDED]
    try:
        shown = views(jobs, living, ANSWER_SECONDS, ask_servers=False)
    except AegisError:
        return living
    return [each for each, view in zip(living, shown, strict=True) if view.model_status not in ENDED]
