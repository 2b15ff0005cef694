"""Wait for a job, and pass on what it says meanwhile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.errors import AegisError, DeadlineError, PartialSuccess
from aegis.runs import find_run
from aegis.schedulers.local import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aegis.runs import Manifest

POLL_SECONDS = 0.2


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
