"""End jobs: let servers finish what they have, stop them through their registry, then cancel. Nothing else is touched."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.errors import AegisError, DeadlineError, NotFoundError, SiteError
from aegis.fleet.status import views
from aegis.registry.model import NO_ENGINE
from aegis.runs import ENDED, component_of, job_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aegis.fleet.jobs import Jobs
    from aegis.fleet.status import JobView
    from aegis.runs import Manifest

DRAIN_SECONDS = 30.0
STOP_SECONDS = 120.0
GRACE_SECONDS = 10.0  # in which a job without servers ends by itself
POLL_SECONDS = 0.2
REGISTRY_SECONDS = 5.0
THREADS, FAR_THREADS = 32, 4


class Wish(Struct, frozen=True, kw_only=True):
    """How a job is to end."""

    cancel: bool = True  # also end the scheduler's job
    wait: bool = True  # until it is gone
    drain: float = DRAIN_SECONDS  # at most so long servers may finish what they have
    timeout: float = STOP_SECONDS


def stop(jobs: Jobs, manifests: Sequence[Manifest], say: Callable[[str], None], wish: Wish) -> None:
    """Stop the servers of a job, or of one component of it, and end the scheduler's job.

    Args:
        jobs: the way to schedulers and registries.
        manifests: the job: one manifest, or one per component; given all of them, the job ends as a whole.
        say: gets a line for each thing that was done.
        wish: how.

    Raises:
        DeadlineError: it has not ended in time.
        SiteError: the scheduler or the registry refuses, or does not answer.
    """
    whole = _is_whole(jobs, manifests)
    live = []
    for manifest, view in zip(manifests, views(jobs, manifests), strict=True):
        if view.final or (view.model_status in ENDED and not whole):
            say(f"{view.job_id} has ended already: {(view.reason or view.model_status).splitlines()[0]}")
        else:
            live.append((manifest, view))
    if not live:
        return
    waiting = [view.job_id for _, view in live if view.model_status == "PENDING"]
    if waiting and not (whole and wish.cancel):
        raise SiteError(
            f"{', '.join(waiting)} has not started: it has no servers to stop",
            hint=f"`aegis shutdown {job_of(waiting[0])}` cancels the whole job",
        )
    rest = [manifest for manifest, _ in live]
    serving = [each for each in rest if each.registry_url and each.state not in ENDED and not waiting]
    stopped = _stop_servers(jobs, serving, wish, say)
    lasting = _await(jobs, stopped, wish.timeout, _serves_no_more) if wish.wait else []
    if wish.cancel and whole:
        _end_job(jobs, rest, stopped, wish)
    elif wish.cancel:
        _end_components(jobs, rest, stopped, say)
        lasting = _await(jobs, rest, wish.timeout, _serves_no_more) if wish.wait else []
    elif len(stopped) < len(rest):
        raise SiteError(
            f"the servers of {rest[0].job} cannot be asked to stop",
            hint=f"`aegis shutdown {job_of(rest[0].job)}` ends the whole job",
        )
    if lasting and not (whole and wish.cancel):
        raise _late(lasting, wish)
    for manifest in rest:
        how = "was waiting in the queue: cancelled" if waiting else "is shut down"
        say(f"{manifest.job} {how if wish.wait or waiting else 'is shutting down'}")


def keeper(jobs: Jobs, file: str) -> Manifest:
    """Return the running job that keeps an endpoints file, or a copy of it.

    Raises:
        NotFoundError: no job does.
    """
    path = os.path.abspath(file)  # noqa: PTH100 - links stay as the job wrote them
    live = [manifest for manifest in reversed(jobs.all()) if manifest.state not in ENDED]
    ours = [manifest for manifest in live if manifest.endpoints_file in {path, file}]
    if not ours and not jobs.is_here:
        ours = _by_content(jobs, live, path)
    states = [view.model_status for view in views(jobs, ours)]
    # of a service, one job keeps the file, and another one waits for it
    for wanted in (lambda state: state == "READY", lambda state: state not in ENDED):
        for manifest, state in zip(ours, states, strict=True):
            if wanted(state):
                return manifest
    raise NotFoundError(f"no running job keeps {path}", hint="`aegis status` lists the jobs")


def _by_content(jobs: Jobs, live: list[Manifest], path: str) -> list[Manifest]:
    """Return the jobs whose first endpoint a file lists: the copy of a remote job's file lies anywhere."""
    from aegis.fleet.registries import endpoints_of  # noqa: PLC0415 - start-up time

    try:
        with open(path, encoding="utf-8", errors="replace") as stream:  # noqa: PTH123 - text in
            listed = set(stream.read().split())
    except OSError:
        return []

    def first(manifest: Manifest) -> str:
        if manifest.gateways:  # the base URL is the gateway's
            return next(iter(endpoints_of(jobs.transport, manifest)), "")
        return (manifest.base_url or "").removeprefix("http://").removesuffix("/v1")

    return [each for each in live if first(each) in listed]


# ------------------------------------------------------------------------------------------------ servers


def _stop_servers(
    jobs: Jobs, manifests: list[Manifest], wish: Wish, say: Callable[[str], None]
) -> list[Manifest]:
    """Drain and stop through the registries; return the jobs whose registry took the wish."""
    if not manifests:
        return []
    from aegis.fleet.concurrently import concurrently  # noqa: PLC0415 - start-up time

    answers = concurrently(
        lambda manifest: _stop_one(jobs, manifest, wish.drain),
        manifests,
        threads=THREADS if jobs.is_here else FAR_THREADS,
        deadline=wish.drain + 4 * REGISTRY_SECONDS,
    )
    stopped = []
    for manifest, problem in zip(manifests, answers, strict=True):
        if problem == "":
            stopped.append(manifest)
        else:
            say(f"warning: {manifest.job}: {problem or 'its registry does not answer'}")
    return stopped


def _stop_one(jobs: Jobs, manifest: Manifest, drain: float) -> str:
    """Let the servers of a job finish, and stop them; return what went wrong."""
    from aegis.fleet.registries import registry_of  # noqa: PLC0415 - start-up time

    try:
        with registry_of(jobs.transport, manifest, REGISTRY_SECONDS) as registry:
            # gateways stay until the requests that they passed on are answered
            known = [each for each in registry.services() if each.service_type not in NO_ENGINE]
            serving = [each for each in known if each.status == "healthy" and each.port]
            if drain and serving:
                for service in serving:
                    registry.drain(service.service_id)
                _until_idle(jobs, [f"{each.host}:{each.port}" for each in serving], drain)
            registry.stop()
    except AegisError as error:
        return error.message
    return ""


def _until_idle(jobs: Jobs, endpoints: list[str], seconds: float) -> None:
    """Wait until no server has requests left; one that does not say so is not waited for."""
    deadline = time.monotonic() + seconds
    while endpoints and time.monotonic() < deadline:
        endpoints = [endpoint for endpoint in endpoints if _is_busy(jobs, endpoint)]
        if endpoints:
            time.sleep(POLL_SECONDS)


def _is_busy(jobs: Jobs, endpoint: str) -> bool:
    from aegis.fleet.metrics.reading import read  # noqa: PLC0415 - start-up time
    from aegis.fleet.registries import get  # noqa: PLC0415 - start-up time

    page = get(jobs.transport, endpoint, "/metrics", 1.0)
    if page is None:
        return False
    values = read(page.decode("utf-8", "replace"), time.monotonic()).values
    return values.get("running", 0.0) + values.get("waiting", 0.0) > 0


# ------------------------------------------------------------------------------------------------ jobs


def _end_job(jobs: Jobs, live: list[Manifest], stopped: list[Manifest], wish: Wish) -> None:
    """End the scheduler's job, unless it ends by itself now that its servers have.

    Raises:
        DeadlineError: it has not ended in time.
    """
    handle = job_of(live[0].job)
    if len(stopped) == len(live) and (not wish.wait or not _await(jobs, live, GRACE_SECONDS, _is_gone)):
        return
    try:
        jobs.scheduler(handle).cancel(handle)
    except NotFoundError:
        if not stopped:
            raise
        return  # it has just ended
    if wish.wait and (lasting := _await(jobs, live, wish.timeout, _is_gone)):
        raise _late(lasting, wish)


def _end_components(
    jobs: Jobs, live: list[Manifest], stopped: list[Manifest], say: Callable[[str], None]
) -> None:
    """Give back the nodes of components, where that is possible without ending the others.

    Raises:
        SiteError: one can neither be asked to stop nor be cancelled by itself.
    """
    for manifest in live:
        handle = manifest.job
        is_slurm = handle.startswith("slurm://")
        if is_slurm and (component_of(handle) or manifest not in stopped):
            jobs.scheduler(handle).cancel(handle)
            continue
        what = "holds the script of all components" if is_slurm else "shares its job"
        hint = f"`aegis shutdown {job_of(handle)}` ends the whole job"
        if manifest not in stopped:
            raise SiteError(f"{handle} {what}: it cannot be cancelled by itself", hint=hint)
        say(f"{handle} {what}: its nodes stay with the job until all components have ended")


def _is_whole(jobs: Jobs, manifests: Sequence[Manifest]) -> bool:
    """Tell whether the manifests are all that the scheduler's job consists of."""
    job = job_of(manifests[0].job)
    given = {manifest.job for manifest in manifests}
    return job in given or given >= {manifest.job for manifest in jobs.components(job)}


def _serves_no_more(view: JobView) -> bool:
    return view.model_status in ENDED


def _is_gone(view: JobView) -> bool:
    return view.final or view.model_status == "FAILED"


def _late(lasting: list[str], wish: Wish) -> DeadlineError:
    return DeadlineError(
        f"{', '.join(lasting)} has not ended after {wish.timeout:g} s",
        hint="`aegis status` shows what is left",
    )


def _await(
    jobs: Jobs, manifests: list[Manifest], timeout: float, is_over: Callable[[JobView], bool]
) -> list[str]:
    """Wait until all are over; return those that are not in time."""
    began = time.monotonic()
    while manifests:
        passed = time.monotonic() - began
        manifests = [jobs.reload(manifest) for manifest in manifests]
        found = views(jobs, manifests, max(1.0, passed / 5), ask_servers=False)
        left = [view.job_id for view in found if not is_over(view)]
        if not left or passed > timeout:
            return left
        time.sleep(POLL_SECONDS)
    return []
