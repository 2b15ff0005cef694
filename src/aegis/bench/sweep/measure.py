"""One point of a sweep: loads sent until the figures are sure enough."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from aegis.bench.generator import BUSY
from aegis.bench.processes import processes_for, run_load
from aegis.bench.sweep.document import Point, ServerPoint
from aegis.bench.sweep.slices import cut, figures, noise
from aegis.errors import SiteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.bench.processes import Measured
    from aegis.bench.sweep.loads import Loads
    from aegis.bench.sweep.slices import Slice
    from aegis.bench.work import Work

SURE: Final = 0.03  # standard error of the throughput, relative, at which a point needs no further load
RUNS: Final = 3  # loads of a point at most
ENOUGH: Final = 0.8  # of the seconds that were asked for


class Meter(Struct):
    """Measures points, one after another; remembers how many processes the generator needs."""

    loads: Loads
    cores: int
    api_key: str | None = None
    processes: int = 0  # 0: found out
    needed: int = 1

    def latency(self) -> float:
        """Return how many s a single request takes, from one to each server.

        Raises:
            SiteError: no server answers it.
        """
        records = [outcome.records for outcome in run_load(self.loads.pilot(), api_key=self.api_key).outcomes]
        took = [float(each.latency[0]) for each in records if each.good[0]]
        if not took:
            raise SiteError(f"no server answers a first request: {records[0].errors[0]}")
        return max(took)

    def measure(self, level: float, expected: float) -> Point:
        """Return a point.

        Args:
            level: of the load.
            expected: s that a request takes, roughly.
        """
        began = datetime.now(UTC).isoformat(timespec="seconds")
        runs: list[Run] = []
        for attempt in itertools.count():  # each with prompts of its own: no cache shall know them
            works = self.loads.works(level, attempt, expected)
            measured = self._sent(works)
            if measured is None:
                continue
            runs.append(Run(tuple(works), measured))
            point = _point(level, began, runs)
            if self._enough(point, len(runs)):
                return point
        raise AssertionError  # it counts for ever

    def _sent(self, works: Sequence[Work]) -> Measured | None:
        """Send works; None: the generator was the bottleneck, and takes more processes from now on."""
        count = self.processes or max(self.needed, processes_for(works, self.cores))
        measured = run_load(works, processes=count, api_key=self.api_key)
        if self.processes or measured.generator.cpu <= BUSY or count >= self.cores:
            return measured
        self.needed = min(2 * count, self.cores)
        return None

    def _enough(self, point: Point, runs: int) -> bool:
        asked = self.loads.question
        if point.broken or asked.requests or runs == RUNS:
            return True
        if asked.seconds:
            return point.seconds >= ENOUGH * asked.seconds
        # The throughput of an open loop is that of its arrivals.
        name = "output_throughput" if asked.kind == "concurrency" else "mean_e2el_ms"
        return bool(point.noise) and point.noise[name] <= SURE * point.figures[name]


class Run(Struct, frozen=True):
    """One load and what came of it."""

    works: tuple[Work, ...]
    measured: Measured


def _point(level: float, began: str, runs: Sequence[Run]) -> Point:
    """Return what the loads of a point come to together."""
    servers = range(len(runs[0].works))
    slices = [
        [part for run in runs for part in cut(run.works[index], run.measured.outcomes[index])]
        for index in servers
    ]
    points = tuple(_server(index, runs, slices[index]) for index in servers)
    failed = sum(each.failed for each in points)
    worst = max((run.measured.generator for run in runs), key=lambda each: each.cpu)
    told = (run.measured.generator.problem() for run in runs)
    live = [each for each, point in zip(slices, points, strict=True) if point.figures["completed"]] or slices
    return Point(
        level=level,
        began=began,
        figures=figures(slices) | {"failed": failed},
        noise=noise(live),
        slices=min(map(len, live)),
        seconds=max(sum(part.seconds for part in each) for each in slices),
        sent=sum(len(work.prompts) for run in runs for work in run.works),
        failed=failed,
        servers=points,
        processes=worst.processes,
        bottleneck=next(filter(None, told), None),
    )


def _server(index: int, runs: Sequence[Run], slices: Sequence[Slice]) -> ServerPoint:
    errors = [error for run in runs for error in run.measured.outcomes[index].records.errors if error]
    return ServerPoint(
        address=runs[0].works[index].target.address,
        figures=figures([slices]) | {"failed": len(errors)},
        failed=len(errors),
        error=errors[0] if errors else "",
    )
