"""From a resolved deployment to a job, and from a job to its endpoints."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aegis.errors import AegisError, DeadlineError, PartialSuccess, SiteError
from aegis.fleet.prepare import place_on
from aegis.fleet.weights import find_weights
from aegis.runs import find_run
from aegis.schedulers.base import JobRequest
from aegis.schedulers.local import Local, status_of
from aegis.spec.dump import dump_deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aegis.runs import Manifest
    from aegis.schedulers.base import Scheduler
    from aegis.spec.resolve import Resolved

POLL_SECONDS = 0.2


def scheduler_for(name: str | None, environ: Mapping[str, str]) -> Scheduler:
    """Return the scheduler of that name.

    Raises:
        SiteError: this version cannot drive it.
    """
    if name in (None, "local"):
        return Local(environ)
    raise SiteError(
        f"jobs of {name} cannot be submitted by this version",
        hint="take an allocation yourself and run `aegis launch` in it, or use --platform local",
    )


def job_request(resolved: Resolved) -> JobRequest:
    """Return the job that serves a deployment; it is refused here if it cannot be placed.

    Raises:
        PlacementError: it does not fit.
    """
    deployment, platform = resolved.deployment, resolved.platform
    nodes = platform.nodes if platform.launcher == "local" else None
    _, placement = place_on(platform, deployment, nodes)
    if platform.launcher == "local":  # the weights are on this machine or nowhere
        for entry in deployment.models:
            if not entry.download_weights:
                find_weights(entry, skip_staging=deployment.skip_staging)
    endpoints = os.path.abspath(deployment.endpoints_file)  # noqa: PTH100 - links stay as the user wrote them
    log_dir = os.path.abspath(Path(deployment.log_dir).expanduser())  # noqa: PTH100 - as above
    named = msgspec.structs.replace(
        deployment, endpoints_file=endpoints, log_dir=log_dir, platform=_absolute(deployment.platform)
    )
    models = tuple(entry.name for entry in deployment.models)
    aegis_env = deployment.aegis_env
    return JobRequest(
        name=deployment.name or models[0],
        models=models,
        nodes=placement.nodes,
        work_dir=os.getcwd(),  # noqa: PTH109 - text
        log_dir=log_dir,
        endpoints_file=endpoints,
        deployment=dump_deployment(named, brief=True),
        python=str(Path(aegis_env).expanduser() / "bin" / "python") if aegis_env else sys.executable,
        walltime=deployment.walltime,
        queue=deployment.queue,
        account=deployment.account,
        filesystems=deployment.filesystems,
        directives=platform.directives,
    )


def wait_until_ready(
    handle: str, environ: Mapping[str, str], say: Callable[[str], None], timeout: float | None = None
) -> list[str]:
    """Wait until every instance of a job is healthy or given up, and return the endpoints.

    Args:
        handle: the job.
        environ: where jobs are indexed.
        say: gets a line for each line of the job's own progress.
        timeout: seconds to wait at most.

    Raises:
        AegisError: the job ended first; the message says why.
        DeadlineError: the timeout passed.
        PartialSuccess: some instances are healthy, the others were given up.
    """
    run = find_run(handle, environ)
    began = time.monotonic()
    told = 0
    while True:
        manifest = run.read_manifest()
        told = _pass_on(run.err, told, say)
        status = status_of(manifest)
        if status.state in {"FAILED", "SHUTDOWN"}:
            raise AegisError(
                f"job {handle} ended before its servers were ready: {status.reason.splitlines()[0] if status.reason else status.state}",
                hint=f"its log is {run.err}",
            )
        if manifest.settled:
            return _endpoints(manifest)
        if timeout is not None and time.monotonic() - began > timeout:
            raise DeadlineError(
                f"job {handle} is not ready after {timeout:.0f} s", hint=f"its log is {run.err}"
            )
        time.sleep(POLL_SECONDS)


def _endpoints(manifest: Manifest) -> list[str]:
    lines = Path(manifest.endpoints_file or "").read_text().split()
    if len(lines) < manifest.instances:
        print(*lines, sep="\n")  # noqa: T201 - data, also when the exit code is 7
        raise PartialSuccess(
            f"{len(lines)} of {manifest.instances} instances are healthy", hint="see `aegis status`"
        )
    return lines


def _pass_on(log: Path, told: int, say: Callable[[str], None]) -> int:
    """Say what was added to a log since; return how far it was read."""
    try:
        with log.open("rb") as stream:
            stream.seek(told)
            text = stream.read()
    except OSError:
        return told
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        if line.startswith(
            "error: "
        ):  # the last words of a job; who waits for it says them again, with the job's name
            break
        say(line)
    return told + len(whole)


def _absolute(platform: str) -> str:
    is_file = "/" in platform or platform.endswith((".yaml", ".yml"))
    return os.path.abspath(Path(platform).expanduser()) if is_file else platform  # noqa: PTH100 - links stay
