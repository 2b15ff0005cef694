"""One run of measuring: within a time budget, going on where the last one ended, and its table and system at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from aegis.files import write_atomically
from aegis.planner.collect import ranks
from aegis.planner.collect.describe import describe, write_system
from aegis.planner.collect.journal import Head, Journal
from aegis.planner.collect.points import COMMON, FULL, QUICK, QUICK_COMMON, points, shapes_of
from aegis.planner.tables.store import TableInfo, file_name, write_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from aegis.planner.collect.device import Device
    from aegis.planner.collect.points import Point
    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.problem import Backend
    from aegis.planner.systems import System

_SHARE_OF_MEMORY = 0.25  # that one point may hold, at most
_SHARE_OF_TIME = 0.05  # of the budget that one point may take, at most
_FOR_COLLECTIVES = 0.15  # of the budget
_SIZES = tuple(2**power for power in range(10, 27))  # elements of a message
_CALLS = 4  # of one point, at least


class Asked(NamedTuple):
    """What is to be measured, and where to write it."""

    name: str  # of the system
    backend: Backend  # that the table is for
    folder: Path
    minutes: float
    quick: bool = False
    models: tuple[ModelShape, ...] = ()  # none: shapes that are common
    ranks: int | None = None  # devices of collectives; None: all that are here
    fresh: bool = False


class Collected(NamedTuple):
    """What came out."""

    system: System
    table: Path
    rows: int
    left: int  # points that the time did not suffice for
    cannot: int  # points that PyTorch or the memory refuses


def collect(
    asked: Asked,
    device: Device,
    say: Callable[[str, int, int], None] = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
) -> Collected:
    """Measure, and write a table and a description of the system.

    Args:
        asked: what.
        device: where.
        say: told what is measured now, and how many points of how many are done.
        clock: seconds.

    Raises:
        OSError: the folder cannot be written.
    """
    start, seconds = clock(), 60 * asked.minutes
    version = str(device.torch.__version__).partition("+")[0]
    file = asked.folder / "current" / file_name(asked.name, asked.backend, version)
    journal = Journal(
        file.with_suffix(".points.jsonl"), Head(device=device.title, torch=version), fresh=asked.fresh
    )
    say("memory", 0, 0)
    traffic = device.traffic()
    system = describe(asked.name, device, traffic, journal)
    wanted = _wanted(asked, system, device.formats())
    left = _measure(wanted, journal, device, _Limits(system, seconds, start, clock), say)
    hops = _collectives(asked, device, journal, max(2.0, seconds * _FOR_COLLECTIVES), say)
    system = describe(asked.name, device, traffic, journal, hops)
    info = TableInfo(
        system=asked.name,
        backend=asked.backend,
        version=version,
        operations={},
        origin=f"measured with PyTorch {version} on {device.title}",
        licence="",
    )
    slices = journal.slices()
    write_tables(file, info, slices)
    write_system(asked.folder / f"{asked.name}.yaml", system, write_atomically)
    rows = sum(len(rows.latency) for by_key in slices.values() for rows in by_key.values())
    return Collected(system, file, rows, left, sum(ms is None for ms in journal.rows.values()))


class _Limits(NamedTuple):
    system: System
    seconds: float
    start: float
    clock: Callable[[], float]

    def over(self) -> bool:
        return self.clock() - self.start > self.seconds * (1 - _FOR_COLLECTIVES)

    def too_much(self, point: Point) -> bool:
        """Whether a point would not fit the memory, or take most of the time."""
        rate = max(self.system.flops.values())
        guess = _CALLS * max(point.flops / rate, point.bytes / self.system.memory_bandwidth)
        held = point.bytes > _SHARE_OF_MEMORY * self.system.memory_capacity
        return held or guess > _SHARE_OF_TIME * self.seconds


def _wanted(asked: Asked, system: System, formats: Sequence[str]) -> list[Point]:
    """Return all points: those of a quick run first, so that a run that ends early has some of everything."""
    if asked.models:
        shapes = shapes_of(asked.models, system, asked.backend)
        coarse = list(points(shapes, QUICK, formats))
    else:
        shapes = COMMON
        coarse = list(points(QUICK_COMMON, QUICK, formats))
    if asked.quick:
        return coarse
    return list(dict.fromkeys([*coarse, *points(shapes, FULL, formats)]))


def _measure(
    wanted: Sequence[Point],
    journal: Journal,
    device: Device,
    limits: _Limits,
    say: Callable[[str, int, int], None],
) -> int:
    """Measure point after point; return how many are left."""
    left = 0
    for index, point in enumerate(wanted):
        if point[:3] in journal:
            continue
        if limits.over() or limits.too_much(point):
            left += 1
            continue
        say(point.operation, index, len(wanted))
        journal.add(*point[:3], device.measure(point))
    return left


def _collectives(
    asked: Asked, device: Device, journal: Journal, seconds: float, say: Callable[[str, int, int], None]
) -> list[ranks.Hop]:
    """Measure collectives of 2, 4, ... devices; return what devices send to each other, for the system."""
    most = device.count if asked.ranks is None else asked.ranks
    groups = [size for size in (2, 4, 8, 16) if size <= most]
    hops: list[ranks.Hop] = []
    for gpus in groups:
        if ("custom_allreduce", (), (gpus, _SIZES[0])) in journal:
            continue
        say(f"collectives of {gpus}", 0, 0)
        sizes = _SIZES[:: 4 if asked.quick else 1]
        hops += ranks.measure(device.kind, gpus, sizes, seconds / len(groups))
    for hop in hops:
        if hop.kind == "p2p":
            continue
        journal.add("nccl", (hop.kind,), (hop.gpus, hop.elements), hop.ms)
        if hop.kind == "all_reduce":
            journal.add("custom_allreduce", (), (hop.gpus, hop.elements), hop.ms)
    return hops
