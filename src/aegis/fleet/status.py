"""What is known of jobs and their instances, from manifests and registries; a hung registry delays nobody."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from aegis.errors import AegisError, NotFoundError
from aegis.fleet.endpoints import by_position
from aegis.runs import ENDED, JobState, Manifest, RunDir, known_runs
from aegis.schedulers.local import status_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.registry.model import Service

REGISTRY_SECONDS = 3.0
THREADS = 16


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
    age: float  # seconds since it was submitted
    time_left: float | None  # seconds to its walltime
    registry_url: str | None
    endpoints_file: str | None
    run_dir: str
    services: tuple[Service, ...]
    pending_reason: str | None = None
    failed_reason: str | None = None


def views(runs: Sequence[RunDir]) -> list[JobView]:
    """Return a view of each job, asking all registries at once."""
    manifests = []
    for run in runs:
        try:
            manifests.append((run, run.read_manifest()))
        except NotFoundError:
            continue
    live = [pair for pair in manifests if pair[1].registry_url and status_of(pair[1]).state not in ENDED]
    answers: dict[str, Any] = {}
    if live:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only where a job is live

        with ThreadPoolExecutor(min(THREADS, len(live))) as pool:
            for (_, manifest), answer in zip(live, pool.map(_ask, live), strict=True):
                answers[manifest.job] = answer
    return [view(manifest, answers.get(manifest.job)) for _, manifest in manifests]


def all_runs(environ: Mapping[str, str]) -> list[RunDir]:
    """Return every run of this user that is still there."""
    return list(known_runs(environ))


def view(manifest: Manifest, answer: list[Service] | str | None) -> JobView:
    """Return the view of a job from its manifest and what its registry answered (or why it did not)."""
    status = status_of(manifest)
    state, reason = status.state, status.reason
    services: list[Service] = list(answer) if isinstance(answer, list) else []
    services.sort(key=by_position)
    heads = [service for service in services if not service.metadata.get("rank")]
    healthy = [service for service in heads if service.status == "healthy"]
    if isinstance(answer, str) and state not in ENDED:
        state, reason = (
            ("LAUNCHING" if manifest.ready is None else "UNKNOWN"),
            f"the registry does not answer: {answer}",
        )
    elif isinstance(answer, list) and state not in ENDED:
        state = "READY" if healthy else "LAUNCHING"
        if not healthy and manifest.ready is not None:
            reason = "no instance is healthy at present"
    now = time.time()
    end = manifest.ended or now
    left = manifest.created + manifest.walltime - now if manifest.walltime and state not in ENDED else None
    return JobView(
        model_name=", ".join(dict.fromkeys(manifest.models)),
        model_status=state,
        base_url=f"http://{healthy[0].host}:{healthy[0].port}/v1" if healthy else None,
        job_id=manifest.job,
        name=manifest.name,
        reason=reason,
        healthy=len(healthy),
        instances=manifest.instances,
        nodes=manifest.nodes,
        host=manifest.host,
        age=end - manifest.created,
        time_left=left,
        registry_url=manifest.registry_url,
        endpoints_file=manifest.endpoints_file,
        run_dir=manifest.run_dir,
        services=tuple(services),
        pending_reason=reason if state == "PENDING" and reason else None,
        failed_reason=reason if state == "FAILED" else None,
    )


def _ask(pair: tuple[RunDir, Manifest]) -> list[Service] | str:
    from aegis.fleet.services import registry_client  # noqa: PLC0415 - only where a job is live

    run, manifest = pair
    try:
        return registry_client(manifest.registry_url or "", run, REGISTRY_SECONDS).services()
    except AegisError as error:
        return error.message
