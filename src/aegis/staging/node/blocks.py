"""Sets of block numbers as ranges: what a node lacks is told in a few words."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Ranges = list[tuple[int, int]]  # from, up to but without


def missing(done: bytearray) -> Ranges:
    """Return the ranges of the zeros."""
    found: Ranges = []
    start = done.find(0)
    while start >= 0:
        stop = done.find(1, start)
        stop = len(done) if stop < 0 else stop
        found.append((start, stop))
        start = done.find(0, stop)
    return found


def union(sets: Iterable[Ranges]) -> Ranges:
    """Return what is in any of some sets of ranges, in order."""
    found: Ranges = []
    for start, stop in sorted(each for ranges in sets for each in ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def numbers(ranges: Ranges) -> Iterator[int]:
    """Yield every number in some ranges."""
    for start, stop in ranges:
        yield from range(start, stop)


def checked(told: object, count: int) -> Ranges:
    """Return ranges that came as JSON, for an item of so many blocks.

    Raises:
        ValueError: they are none, or of another item.
    """
    try:
        ranges = [(int(start), int(stop)) for start, stop in cast("list[list[int]]", told)]
    except TypeError:
        raise ValueError(f"no ranges of blocks: {told!r}") from None
    if any(not 0 <= start < stop <= count for start, stop in ranges):
        raise ValueError(f"ranges outside of {count} blocks: {told!r}")
    return ranges
