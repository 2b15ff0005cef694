"""What users see of their jobs: schedulers, manifests and servers joined; a hung server delays nobody."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from aegis.errors import AegisError
from aegis.fleet.endpoints import by_position, endpoint_lines
from aegis.fleet.jobs import LOCAL, is_final, run_of
from aegis.fleet.logs import last_words
from aegis.fleet.verdict import Evidence, judge
from aegis.registry.model import GATEWAY_TYPE, NO_ENGINE
from aegis.runs import ENDED, JobState, Manifest
from aegis.schedulers.base import JobStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.fleet.jobs import Jobs
    from aegis.fleet.verdict import Verdict
    from aegis.registry.model import Service
    from aegis.schedulers.transport import Transport

REGISTRY_SECONDS = 3.0
HEALTH_SECONDS = 2.0
DEADLINE = 8.0  # for the servers of all jobs together
THREADS, FAR_THREADS = 32, 4
ENDPOINTS_ASKED = 64  # of one job, where its registry is silent


class JobView(Struct, frozen=True, kw_only=True):
    """One job, as `aegis status` shows it; the first three keys are vec-inf's."""

    model_name: str
    model_status: JobState
    base_url: str | None
    job_id: str
    name: str
    reason: str
    healthy: int
    instances: int
    nodes: int
    host: str
    node_list: str  # as the scheduler writes it
    restarts: int  # times that the scheduler put the job back into the queue
    age: float  # seconds since it was submitted
    time_left: float | None  # seconds to its walltime
    answer_age: float | None  # seconds since the scheduler answered; None where it was not asked
    exit_code: int | None
    registry_url: str | None
    endpoints_file: str | None
    run_dir: str
    log: str  # the job's own, or the scheduler's where the job never wrote one
    final: bool  # nothing about it can change
    services: tuple[Service, ...]
    gateways: tuple[Service, ...] = ()  # that this job started
    service: str | None = None  # whose job it is
    predecessor: str | None = None  # job that it takes over from
    successor: str | None = None  # job that takes over from it
    pending_reason: str | None = None
    failed_reason: str | None = None


class Servers(Struct, frozen=True, kw_only=True):
    """What the servers of a job say."""

    services: tuple[Service, ...] = ()
    gateways: tuple[Service, ...] = ()
    endpoints: tuple[str, ...] = ()  # of the servers that answer
    trouble: str = ""


def views(
    jobs: Jobs, manifests: Sequence[Manifest], max_age: float = 0.0, *, ask_servers: bool = True
) -> list[JobView]:
    """Return a view of each job, asking each scheduler once and all servers at once; close what has ended.

    Args:
        jobs: the way to schedulers and files.
        manifests: what is known of the jobs.
        max_age: seconds that a scheduler's answer may be old.
        ask_servers: whether registries and servers are asked.
    """
    open_ones = [manifest for manifest in manifests if not is_final(manifest)]
    statuses = _statuses(jobs, open_ones, max_age)
    servers: dict[str, Servers] = {}
    asked = [each for each in open_ones if _may_serve(each, statuses.get(each.job))]
    if ask_servers and asked:
        servers = _servers(jobs, asked)
    now = time.time()
    found = []
    for manifest in manifests:
        status, answer = statuses.get(manifest.job), servers.get(manifest.job)
        words = ""
        if status and _left_no_word(manifest, status):
            words, log = last_words(jobs, manifest, status)
            status = msgspec.structs.replace(status, log=log)
        verdict = judge(
            Evidence(
                manifest=manifest,
                status=status,
                now=now,
                words=words,
                silence=jobs.silence(manifest.job),
                healthy=len(answer.endpoints) if answer else None,
                trouble=answer.trouble if answer else "",
                local=manifest.job.startswith(f"{LOCAL}://"),
            )
        )
        if verdict.final and not is_final(manifest):
            from aegis.fleet.close import close  # noqa: PLC0415 - once in the life of a job

            close(jobs, manifest, verdict, status)
        found.append(view(manifest, status, answer, verdict, now))
    return found


def view(
    manifest: Manifest, status: JobStatus | None, servers: Servers | None, verdict: Verdict, now: float
) -> JobView:
    """Return what is shown of a job that has been judged."""
    servers, status = servers or Servers(), status or JobStatus(state="UNKNOWN")
    asked = status.age if not is_final(manifest) else None
    ended = verdict.state in ENDED
    endpoints = servers.endpoints if verdict.state == "READY" else ()
    gateways = endpoint_lines(servers.gateways) if servers.services else manifest.gateways
    base_url = f"http://{(gateways or endpoints)[0]}/v1" if endpoints else None
    began = verdict.state != "PENDING"  # else there is none yet
    log = manifest.log or (status.log if manifest.state == "PENDING" and began else "")
    if manifest.run_dir and not log:
        log = str(run_of(manifest).err)
    return JobView(
        model_name=", ".join(dict.fromkeys(manifest.models)),
        model_status=verdict.state,
        base_url=base_url or (manifest.base_url if verdict.state == "READY" else None),
        job_id=manifest.job,
        name=manifest.name,
        reason=verdict.reason,
        healthy=len(endpoints),
        instances=manifest.instances,
        nodes=manifest.nodes,
        host=manifest.host,
        node_list=status.nodes or manifest.node_list,
        restarts=max(manifest.restarts, status.restarts),
        age=max(
            0.0, (manifest.ended or (status.ended if ended else None) or now) - (manifest.created or now)
        ),
        time_left=None if ended else _time_left(manifest, status, now),
        answer_age=asked,
        exit_code=status.exit_code if status.exit_code is not None else manifest.exit_code,
        registry_url=manifest.registry_url,
        endpoints_file=manifest.endpoints_file,
        run_dir=manifest.run_dir,
        log=log,
        final=verdict.final,
        services=servers.services if not ended else (),
        gateways=servers.gateways if not ended else (),
        service=manifest.service,
        predecessor=manifest.predecessor,
        successor=manifest.successor,
        pending_reason=verdict.reason if verdict.state == "PENDING" and verdict.reason else None,
        failed_reason=verdict.reason if verdict.state == "FAILED" else None,
    )


def _statuses(jobs: Jobs, manifests: Sequence[Manifest], max_age: float) -> dict[str, JobStatus]:
    """Return what the schedulers say; the manifest of a local job is its accounting."""
    local = [manifest for manifest in manifests if manifest.job.startswith(f"{LOCAL}://")]
    found: dict[str, JobStatus] = {}
    if local:
        from aegis.schedulers.local import status_of  # noqa: PLC0415 - start-up time

        elsewhere = JobStatus(state="UNKNOWN", reason=f"it runs on {jobs.transport.name}: ask there")
        found = {each.job: status_of(each) if jobs.is_here else elsewhere for each in local}
    others = [manifest.job for manifest in manifests if manifest.job not in found]
    return found | jobs.states(others, max_age) if others else found


def _left_no_word(manifest: Manifest, status: JobStatus) -> bool:
    """Tell whether a job has ended, and its head did not note it."""
    local = manifest.job.startswith(f"{LOCAL}://")
    return status.state in ENDED and manifest.state not in ENDED and bool(manifest.run_dir) and not local


def _may_serve(manifest: Manifest, status: JobStatus | None) -> bool:
    if not manifest.registry_url or manifest.state in ENDED:
        return False
    return status is None or status.state not in ENDED


def _time_left(manifest: Manifest, status: JobStatus, now: float) -> float | None:
    """Return the seconds to the walltime of a job that runs."""
    walltime = status.walltime or manifest.walltime
    local = manifest.job.startswith(f"{LOCAL}://")
    started = status.started or (manifest.created if local else None)
    if not walltime or not started or status.state == "PENDING":
        return None
    return started + walltime - now


# ------------------------------------------------------------------------------------------- asking the servers


def _servers(jobs: Jobs, manifests: Sequence[Manifest]) -> dict[str, Servers]:
    from aegis.fleet.concurrently import concurrently  # noqa: PLC0415 - only where a job runs

    answers = concurrently(
        lambda manifest: _ask_servers(jobs.transport, manifest),
        manifests,
        threads=THREADS if jobs.is_here else FAR_THREADS,
        deadline=DEADLINE,
    )
    late = Servers(trouble=f"its servers do not answer within {DEADLINE:.0f} s")
    return {each.job: answer or late for each, answer in zip(manifests, answers, strict=True)}


def _ask_servers(transport: Transport, manifest: Manifest) -> Servers:
    try:
        known = sorted(_ask_registry(transport, manifest), key=by_position)
    except AegisError as error:
        return _ask_endpoints(transport, manifest, f"the registry does not answer: {error.message}")
    services = [service for service in known if service.service_type not in NO_ENGINE]
    gateways = [
        each
        for each in known
        if each.service_type == GATEWAY_TYPE and each.metadata.get("job") == manifest.job
    ]
    heads = [service for service in services if not service.metadata.get("rank")]
    failed = [service for service in heads if service.status == "failed"]
    trouble = ""
    if failed:
        why = f"{failed[0].service_id}: {failed[0].metadata.get('reason') or 'no reason given'}"
        trouble = f"{len(failed)} of {len(heads)} instances failed: {why}"
    return Servers(
        services=tuple(services),
        gateways=tuple(gateways),
        endpoints=tuple(endpoint_lines(services)),
        trouble=trouble,
    )


def _ask_registry(transport: Transport, manifest: Manifest) -> list[Service]:
    from aegis.fleet.registries import registry_of  # noqa: PLC0415 - only where a job runs

    with registry_of(transport, manifest, REGISTRY_SECONDS) as registry:
        return registry.services()


def _ask_endpoints(transport: Transport, manifest: Manifest, trouble: str) -> Servers:
    """Ask the servers themselves: a registry that is silent says nothing about them."""
    from aegis.fleet.concurrently import concurrently  # noqa: PLC0415 - only where a job runs
    from aegis.fleet.registries import answers, endpoints_of  # noqa: PLC0415 - as above

    endpoints = endpoints_of(transport, manifest)[:ENDPOINTS_ASKED]
    alive = concurrently(
        lambda endpoint: answers(transport, endpoint, HEALTH_SECONDS),
        endpoints,
        threads=THREADS,
        deadline=2 * HEALTH_SECONDS,
    )
    found = tuple(endpoint for endpoint, answer in zip(endpoints, alive, strict=True) if answer)
    if not found and manifest.ready is not None:
        trouble += "; none of its servers answers"
    return Servers(endpoints=found, trouble=trouble)
