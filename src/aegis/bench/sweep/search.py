"""Which load is measured next: doubling until the servers are saturated, then finer where it matters. Pure.

What comes next follows from what was measured alone, so a sweep that was cut off goes on where it ended.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NEAR_BEST: Final = 0.9  # of the greatest throughput: the knee is the least load that reaches it


class Seen(NamedTuple):
    """What a load level came to."""

    level: float
    throughput: float
    latency: float  # of a request; any unit
    meets: bool = False  # the targets, where there are any
    broken: bool = False  # too many requests failed


class Rules(Struct, frozen=True, kw_only=True):
    """How loads are chosen."""

    start: float = 1.0
    most: float = 1024.0
    whole: bool = True  # levels are whole numbers
    gain: float = 0.05  # saturated: doubling the load gives less than this in throughput,
    grown: float = 0.20  # while requests take so much longer
    close: float = 1.25  # levels nearer to each other than this tell nothing new
    refine: int = 4  # levels between those of the doubling


def next_level(seen: Sequence[Seen], rules: Rules) -> float | None:
    """Return the load to measure next; None: the sweep is complete."""
    known = {each.level: each for each in seen}
    ladder, missing = _ladder(known, rules)
    if missing is not None:
        return missing
    if len(known.keys() - set(ladder)) >= rules.refine:
        return None
    for low, high in _brackets(sorted(seen)):
        middle = math.sqrt(low * high)
        middle = float(round(middle)) if rules.whole else float(f"{middle:.3g}")
        if low < middle < high and high / low > rules.close:
            return middle
    return None


def saturated(before: Seen, after: Seen, rules: Rules) -> bool:
    """Tell whether twice the load gave longer waiting and hardly more throughput."""
    return (
        after.throughput < before.throughput * (1 + rules.gain)
        and after.latency > before.latency * (1 + rules.grown)
    )  # fmt: skip


def end_of(seen: Sequence[Seen], rules: Rules) -> str:
    """Say why the doubling ended."""
    known = {each.level: each for each in seen}
    ladder, missing = _ladder(known, rules)
    last = known.get(ladder[-1]) if ladder else None
    if missing is not None or last is None:
        return "not complete"
    if last.broken:
        return f"requests fail at {last.level:g}"
    before = known.get(ladder[-2]) if len(ladder) > 1 else None
    if before and saturated(before, last, rules):
        return f"saturated from {knee(sorted(seen)).level:g} on"
    return f"still growing at {last.level:g}"


def knee(seen: Sequence[Seen]) -> Seen:
    """Return the least load with nearly all of the throughput; `seen` is not empty."""
    best = max(each.throughput for each in seen)
    return min((each for each in seen if each.throughput >= NEAR_BEST * best), key=lambda each: each.level)


def _ladder(known: dict[float, Seen], rules: Rules) -> tuple[list[float], float | None]:
    """Return the levels of the doubling as far as it got, and the one that is to be measured."""
    levels: list[float] = []
    level = rules.start
    while level <= rules.most:
        if level not in known:
            return levels, level
        levels.append(level)
        if known[level].broken:
            break
        if len(levels) > 1 and saturated(known[levels[-2]], known[level], rules):
            break
        level *= 2
    return levels, None


def _brackets(seen: Sequence[Seen]) -> Iterator[tuple[float, float]]:
    """Yield pairs of neighbouring levels between which something happens, the most telling first."""
    good = [each for each in seen if not each.broken]
    if not good:
        return
    meeting = [each.level for each in good if each.meets]
    if meeting and (above := [each.level for each in seen if each.level > max(meeting)]):
        yield max(meeting), min(above)
    at = good.index(knee(good))
    if at:
        yield good[at - 1].level, good[at].level
    if at + 1 < len(good):
        yield good[at].level, good[at + 1].level
