"""Find tables that contradict their neighbours, so that a plan that rests on one can say so.

A neighbour is the same slice of another backend on the same system: kernels differ, but not several times over at
most points. Besides, latencies that fall as the work grows, and products faster than the hardware.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aegis.planner.systems import load_system, system_names
from aegis.planner.tables.slices import LAYOUTS
from aegis.planner.tables.store import Finding, open_tables, shipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from aegis.planner.operations import Floats
    from aegis.planner.systems import Era, System
    from aegis.planner.tables.slices import Key, Slice

    Slices = Mapping[str, Mapping[Key, Slice]]  # by operation and key

SLOWER = 3.0  # times as slow as the slowest neighbour
SHARE = 1 / 3  # of the points that both have
FALLS = 2.0  # a point of a curve, against the one after it
FALLING_SHARE = 0.03
FASTER = 1.1  # than the hardware's peak
POINTS = 30  # fewer prove nothing
_PEAKS = {"bfloat16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8", "int8_wo": "bfloat16", "nvfp4": "fp4"}
_IMMATERIAL = {
    "compute_scale",
    "scale_matrix",
    "nccl",
}  # differences of small numbers; one file for all backends


class Neighbours(NamedTuple):
    """The tables of one system, by backend."""

    system: str
    hardware: System | None  # None: products are not held against its peak
    tables: Mapping[str, Slices]


def find_contradictions(neighbours: Neighbours) -> tuple[Finding, ...]:
    """Return what contradicts itself, its neighbours or the hardware; the worst first."""
    found = [*_slower(neighbours), *_falling(neighbours), *_impossible(neighbours)]
    return tuple(sorted(found, key=lambda each: (-each.factor * each.points, each.operation, each.key)))


def check_tables(system: str, backends: Sequence[str] = (), *, era: Era = "current") -> tuple[Finding, ...]:
    """Check the tables of a system that are there, the newest of each backend.

    Raises:
        ConfigError: no tables of that system, or of a backend that is named.
        TableError: a file is damaged.
    """
    names = backends or sorted({each.backend for each in shipped(eras=(era,)) if each.system == system})
    tables: dict[str, Slices] = {}
    for backend in names or ("",):
        stored = open_tables(system, backend, era=era)
        tables[backend] = {
            name: {key: rows for key in stored.keys(name) if (rows := stored.load(name, key))}
            for name in stored.info.operations
        }
    hardware = load_system(system, era=era) if system in system_names(era=era) else None
    return find_contradictions(Neighbours(system, hardware, tables))


def _slower(neighbours: Neighbours) -> Iterator[Finding]:
    """Yield slices that are several times slower than those of all other backends, at many points."""
    marks: dict[tuple[str, str, Key], NDArray[np.uint64]] = {}
    for backend, operation, key, rows in _all(neighbours):
        others = _others(neighbours, backend, operation, key)
        if operation in _IMMATERIAL or not others:
            continue
        for name, place, other in [(backend, key, rows), *others]:
            if (name, operation, place) not in marks:
                marks[name, operation, place] = _marks(other)
        ratio = _ratio(
            rows.latency,
            marks[backend, operation, key],
            [(other.latency, marks[name, operation, place]) for name, place, other in others],
        )
        slow = ratio > SLOWER
        if slow.sum() >= max(POINTS, SHARE * len(ratio)):
            names = " and ".join(sorted(name for name, _, _ in others))
            what = f"is slower than with {names}, {_range(ratio[slow])} times at {slow.sum()} of {len(ratio)} points"
            yield _finding(neighbours, (backend, operation, key), ratio[slow], what)


def _others(neighbours: Neighbours, backend: str, operation: str, key: Key) -> list[tuple[str, Key, Slice]]:
    """Return the same slice of the other backends; a kernel of one backend stands against all kernels of others."""
    laned = bool(LAYOUTS[operation].key) and LAYOUTS[operation].key[0] == "lane"
    places = [key, ("default", *key[1:])] if laned else [key]
    found = []
    for name, operations in neighbours.tables.items():
        slices = operations.get(operation, {})
        place = next((each for each in places if each in slices), None)
        if name != backend and place is not None:
            found.append((name, place, slices[place]))
    return found


def _falling(neighbours: Neighbours) -> Iterator[Finding]:
    for backend, operation, key, rows in _all(neighbours):
        if operation in _IMMATERIAL or len(rows.latency) < POINTS:
            continue
        table = np.stack(rows.axes, axis=1)
        same = (table[1:, :-1] == table[:-1, :-1]).all(axis=1)
        ratio = rows.latency[:-1][same] / np.maximum(rows.latency[1:][same], 1e-9)
        falls = ratio > FALLS
        if falls.sum() >= max(POINTS, FALLING_SHARE * len(ratio)):
            last = LAYOUTS[operation].axes[-1]
            what = f"falls to less than half as {last} grows, at {falls.sum()} of {len(ratio)} points"
            yield _finding(neighbours, (backend, operation, key), ratio[falls], what)


def _impossible(neighbours: Neighbours) -> Iterator[Finding]:
    """Yield products that are faster than the peak of the hardware allows: 2 m n k operations."""
    for backend, operation, key, rows in _all(neighbours):
        peak = neighbours.hardware and neighbours.hardware.flops.get(
            _PEAKS.get(str(key[0]) if key else "", "")
        )
        if operation == "gemm" and peak:
            n, k, m = (axis.astype(np.float64) for axis in rows.axes)
            ratio = 2e3 * m * n * k / peak / np.maximum(rows.latency, 1e-9)
            fast = ratio > FASTER
            if fast.sum() >= POINTS:
                what = f"is faster than the hardware can, {_range(ratio[fast])} times at {fast.sum()} points"
                yield _finding(neighbours, (backend, operation, key), ratio[fast], what)


def _all(neighbours: Neighbours) -> Iterator[tuple[str, str, Key, Slice]]:
    for backend, operations in neighbours.tables.items():
        for operation, slices in operations.items():
            for key, rows in slices.items():
                yield backend, operation, key, rows


def _ratio(
    latency: Floats, marks: NDArray[np.uint64], others: Sequence[tuple[Floats, NDArray[np.uint64]]]
) -> Floats:
    """Return latencies over those of the slowest of the others, at the points that any of them has too."""
    slowest = np.zeros(len(latency))
    for theirs, their_marks in others:
        _, here, there = np.intersect1d(marks, their_marks, assume_unique=True, return_indices=True)
        slowest[here] = np.maximum(slowest[here], theirs[there])
    known = slowest > 0
    return latency[known] / slowest[known]


def _marks(rows: Slice) -> NDArray[np.uint64]:
    """Return a number for each row that is the same where all axes are (a hash: collisions do not matter here)."""
    marks = np.zeros(len(rows.latency), dtype=np.uint64)
    for axis in rows.axes:
        marks = (marks ^ axis.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        marks ^= marks >> np.uint64(29)
    return marks


def _range(ratio: Floats) -> str:
    low, middle, high = np.percentile(ratio, [10, 50, 90])
    return f"{low:.1f} to {high:.1f} (median {middle:.1f})"


def _finding(neighbours: Neighbours, place: tuple[str, str, Key], ratio: Floats, what: str) -> Finding:
    """Return a finding about a slice, of the ratios at the points that show it."""
    backend, operation, key = place
    name = f"{operation} ({', '.join(map(str, key))})" if key else operation
    return Finding(
        system=neighbours.system,
        backend=backend,
        operation=operation,
        key=key,
        what=f"{backend} on {neighbours.system}: the table of {name} {what}",
        factor=round(float(np.median(ratio)), 2),
        points=len(ratio),
    )
