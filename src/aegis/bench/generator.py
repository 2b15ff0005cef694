"""Whether the load generator itself was what was measured."""

from __future__ import annotations

from array import array
from time import monotonic
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.bench.loop import Loop

TICK: Final = 0.01  # s between two looks at the event loop's lateness
BUSY: Final = 0.85  # share of a core beyond which a process is the bottleneck
LATE: Final = 0.010  # s, of one look in a hundred
MILLI: Final = 1000.0


class Generator(Struct, frozen=True, kw_only=True):
    """How well the generator kept up; over several processes the worst of them."""

    processes: int = 1
    cpu: float = 0.0  # share of one core
    loop_late_p99_ms: float = 0.0  # of its event loop: by so much the times of events may be too late
    arrivals_late_p99_ms: float = 0.0  # of requests against their schedule

    def problem(self) -> str | None:
        """Say why the figures may be the generator's rather than the server's; None where they are not."""
        if self.cpu > BUSY:
            return f"the load generator was busy {self.cpu:.0%} of the time: give it more processes"
        if self.loop_late_p99_ms > LATE * MILLI:
            return f"the load generator saw 1 % of its events {self.loop_late_p99_ms:.0f} ms late or more: its cores are busy"
        if self.arrivals_late_p99_ms > LATE * MILLI:
            return f"1 % of the requests left {self.arrivals_late_p99_ms:.0f} ms late or more: give it more processes"
        return None


def worst(generators: Sequence[Generator]) -> Generator:
    """Return what several processes come to."""
    return Generator(
        processes=sum(each.processes for each in generators),
        cpu=max(each.cpu for each in generators),
        loop_late_p99_ms=max(each.loop_late_p99_ms for each in generators),
        arrivals_late_p99_ms=max(each.arrivals_late_p99_ms for each in generators),
    )


class Lateness:
    """Seconds by which an event loop runs what is due late, and by which requests leave late."""

    def __init__(self) -> None:
        self.arrivals = array("d")
        self._ticks = array("d")

    def watch(self, loop: Loop) -> None:
        """Look at the loop every TICK seconds from now on."""
        due = monotonic() + TICK

        def tick() -> None:
            self._ticks.append(monotonic() - due)
            self.watch(loop)

        loop.at(due, tick)

    def summary(self, cpu: float) -> Generator:
        """Return what was seen."""
        return Generator(
            cpu=cpu, loop_late_p99_ms=_p99(self._ticks), arrivals_late_p99_ms=_p99(self.arrivals)
        )


def _p99(seconds: array[float]) -> float:
    return float(np.percentile(seconds, 99)) * MILLI if seconds else 0.0
