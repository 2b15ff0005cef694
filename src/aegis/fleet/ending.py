"""Why a launch ends, and what its user is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.errors import AegisError, DeadlineError
from aegis.fleet.opening import last_line
from aegis.fleet.progress import failure_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.fleet.progress import Progress
    from aegis.runs import RunDir

SHUT_DOWN = "shut down through the registry"


class Stop(Exception):
    """The launch is to end."""

    def __init__(self, why: str, error: AegisError | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.error = error


def not_in_time(progress: Progress, seconds: int) -> Stop:
    """Return the end of a fleet of which nothing became healthy in time."""
    reasons = "\n".join(
        f"{name}: {service.status}, {service.metadata.get('reason')}"
        for name, service in progress.heads.items()
    )
    why = f"no instance was healthy after {seconds} s\n{reasons}"
    error = DeadlineError(why, hint="raise --startup-timeout, or look into the logs")
    return Stop(f"no instance healthy after {seconds} s", error)


def nothing_left(progress: Progress, run: RunDir, say: Callable[[str], None]) -> Stop:
    """Return the end of a fleet that has nothing left to serve, and say what its servers said last."""
    failures, counts = progress.failed, progress.counts
    if not failures and counts.lost:
        return Stop("every server was drained" if counts.wanted else "no server is wanted any more")
    if not failures:
        why = f"no agent is left{last_line(run.nodes)}"
        return Stop(why, AegisError(why, hint=f"the whole output is in {run.nodes}"))
    what = "every instance failed" if counts.wanted > 1 else "the instance failed"
    why = f"{what}: {failures[0].reason}"
    for line in failure_lines(failures):
        say(line)
    return Stop(why, AegisError(why, hint=f"the whole output is in {run.instances}"))
