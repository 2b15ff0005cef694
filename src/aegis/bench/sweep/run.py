"""A sweep on its way: point after point, each kept before the next begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from aegis.bench.sweep.search import Rules, Seen, end_of, next_level

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aegis.bench.sweep.document import Sweep
    from aegis.bench.sweep.measure import Meter


class Steps(Struct, frozen=True):
    """What whoever watches a sweep is told."""

    begin: Callable[[float], None]
    done: Callable[[Sweep, float], Sweep]


def run(sweep: Sweep, levels: Sequence[float] | Rules, meter: Meter, latency: float, steps: Steps) -> Sweep:
    """Measure what is missing, and return the sweep.

    Args:
        sweep: with the points that there are already.
        levels: those that are wanted, or how to find them.
        meter: measures a point.
        latency: s of a request on an idle server.
        steps: told of each point, before and after; `done` saves it, and may add to it.
    """
    while True:
        level = _next(sweep, levels)
        if level is None:
            break
        steps.begin(level)
        point = meter.measure(level, _expected(sweep, level, latency))
        sweep = steps.done(sweep.with_point(point), level)
    return ended(sweep, levels)


def ended(sweep: Sweep, levels: Sequence[float] | Rules) -> Sweep:
    """Return a sweep that says why it ended."""
    return replace(sweep, end=end_of(seen(sweep), levels) if isinstance(levels, Rules) else "")


def complete(sweep: Sweep, levels: Sequence[float] | Rules) -> bool:
    """Tell whether nothing is left to measure."""
    return _next(sweep, levels) is None


def seen(sweep: Sweep) -> list[Seen]:
    """Return the points as the search looks at them."""
    return [
        Seen(
            level=point.level,
            throughput=point.figures["output_throughput"],
            latency=point.figures["mean_e2el_ms"],
            meets=bool(sweep.targets) and sweep.targets.met(point.figures),
            broken=point.broken,
        )
        for point in sweep.points
    ]


def _next(sweep: Sweep, levels: Sequence[float] | Rules) -> float | None:
    if isinstance(levels, Rules):
        return next_level(seen(sweep), levels)
    there = {point.level for point in sweep.points}
    return next((level for level in levels if level not in there), None)


def _expected(sweep: Sweep, level: float, latency: float) -> float:
    """Return s that a request will take: as at the next lower load, or on an idle server."""
    lower = [point for point in sweep.points if point.level < level and point.figures["completed"]]
    return lower[-1].figures["mean_e2el_ms"] / 1000 if lower else latency
