"""Past the end of the tables: the nearest that was measured stands in, or a formula, with a note of what was done.

Aegis' own rules, for the mode HYBRID of its estimator: what answers by the rules of aiconfigurator 0.12.0 stays as it is.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from msgspec.structs import replace

from aegis.planner.models.formats import FORMATS
from aegis.planner.operations import AllReduce, Collective, Measured, Moe, NoData
from aegis.planner.perf.analytic import Analytic
from aegis.planner.perf.measured import farther
from aegis.planner.perf.sol import SpeedOfLight
from aegis.planner.tables.slices import LAYOUTS

if TYPE_CHECKING:
    from aegis.planner.operations import Floats, Leaf, Performance, Query
    from aegis.planner.problem import Backend
    from aegis.planner.systems import System
    from aegis.planner.tables.slices import Key, Tables

_SPARSE = frozenset({"dsa_context_module", "dsa_generation_module"})
# Which lane of a sparse block is most alike: what differs from the one asked for, the worst first.
_WORST_FIRST = ("architecture", "lane", "fmha", "kv_cache", "gemm")
_Message: TypeAlias = AllReduce | Collective


class Reach:
    """Measured tables and what lies beyond them. Implements `operations.Performance`."""

    def __init__(
        self, measured: Performance, tables: Tables, backend: Backend, *, extras_per_token: bool = False
    ) -> None:
        """Take what answers by the tables, and the tables themselves."""
        self._measured = measured
        self._tables = tables
        self._light = SpeedOfLight(measured.system)
        self._formula = Analytic(measured.system, backend, extras_per_token=extras_per_token)
        self._said: dict[str, None] = {}  # in the order of saying
        self._groups = cache(self._groups_of)
        self._splits = cache(self._splits_of)

    @property
    def system(self) -> System:
        """The hardware."""
        return self._measured.system

    @property
    def notes(self) -> tuple[str, ...]:
        """What is wrong with the tables, and what stood in for what was not measured."""
        return (*self._measured.notes, *self._said)

    def latency(self, operation: Leaf, at: Query) -> Floats:
        """Return ms of one occurrence, in the shape that the query broadcasts to.

        Raises:
            NoData: nothing like it was measured, and there is no formula for it.
        """
        if isinstance(operation, _Message):
            return self._message(operation, at)
        try:
            return self._measured.latency(operation, at)
        except NoData as error:
            try:
                return self._nearest(operation, at)
            except NoData:
                raise error from None

    def _nearest(self, operation: Leaf, at: Query) -> Floats:
        match operation:
            case Moe():
                return self._experts(operation, at)
            case Measured() if operation.table in _SPARSE:
                return self._sparse(operation, at)
        return self._estimated(operation, at)

    def _message(self, op: _Message, at: Query) -> Floats:
        """Price a collective of as many GPUs as were measured: these, or the most below them over slower links."""
        groups = self._groups(op.kind if isinstance(op, Collective) else None)
        if op.gpus <= 1 or op.gpus in groups:
            return self._measured.latency(op, at)
        if not groups:
            return self._estimated(op, at)
        near = max((each for each in groups if each < op.gpus), default=groups[0])
        slower = self.system.bandwidth(near) / self.system.bandwidth(op.gpus)
        links = f", {slower:g} times slower over the links between nodes" if slower > 1 else ""
        self._say(f"no collectives of {op.gpus} GPUs were measured: those of {near} stand in{links}")
        try:
            return self._measured.latency(op, at)
        except NoData:
            value = self._measured.latency(replace(op, gpus=near), at)
            return value * farther(self.system, near, op.gpus)

    def _groups_of(self, kind: str | None) -> tuple[int, ...]:
        """Return the sizes of groups that a collective was measured for (None: the engine's all-reduce), rising."""
        table = self._tables.load(*(("custom_allreduce", ()) if kind is None else ("nccl", (kind,))))
        return () if table is None else tuple(np.unique(table.axes[0]).tolist())

    def _experts(self, op: Moe, at: Query) -> Floats:
        """Take the split that was measured nearest; one of less work is taken to be no faster."""
        for tp, ep in sorted(self._splits(), key=lambda split: _apart(split, (op.moe_tp, op.moe_ep))):
            near = replace(op, moe_tp=tp, moe_ep=ep)
            try:
                value = self._measured.latency(near, at)
                more = self._light.latency(op, at) / self._light.latency(near, at)
            except NoData:
                continue
            self._say(
                f"no experts split {op.moe_tp} x {op.moe_ep} were measured: those split {tp} x {ep} stand in"
            )
            return np.asarray(value * np.maximum(more, 1.0))
        return self._estimated(op, at)

    def _splits_of(self) -> frozenset[tuple[int, int]]:
        """Return (moe_tp, moe_ep) of all experts that were measured."""
        found = [self._tables.load("moe", key) for key in self._tables.keys("moe")]
        tables = [each for each in found if each is not None]
        return frozenset(
            pair
            for each in tables
            for pair in set(zip(each.axes[4].tolist(), each.axes[5].tolist(), strict=True))
        )

    def _sparse(self, op: Measured, at: Query) -> Floats:
        """Take the lane that is most alike: weights in another format change a sparse block by little."""
        columns, asked = LAYOUTS[op.table].key, dict(op.key)

        def unlike(key: Key) -> tuple[float, ...]:
            has = dict(zip(columns, key, strict=True))
            return tuple(_unlike(asked[name], has[name]) for name in _WORST_FIRST if name in has)

        for key in sorted(self._tables.keys(op.table), key=unlike):
            has = dict(zip(columns, key, strict=True))
            try:
                value = self._measured.latency(replace(op, key=tuple((asked | has).items())), at)
            except NoData:
                continue
            told = ", ".join(f"{has[name]} for {asked[name]}" for name in columns if has[name] != asked[name])
            self._say(f"sparse attention was not measured so: the nearest stands in ({told})")
            return value
        raise NoData(f"{op.name}: no sparse attention was measured")

    def _estimated(self, operation: Leaf, at: Query) -> Floats:
        value = self._formula.latency(operation, at)
        self._say(
            f"{operation.name}: nothing like it was measured on {self.system.name}; a formula estimates it"
        )
        return value

    def _say(self, note: str) -> None:
        self._said[note] = None


def _apart(one: tuple[int, int], other: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Return how many octaves lie between two splits; the same for equals, whatever their order."""
    gaps = np.abs(np.log2(one) - np.log2(other))
    return float(gaps.sum()), one


def _unlike(asked: object, has: object) -> float:
    """Return 0 for the same, and for number formats how far apart they are."""
    if asked == has:
        return 0.0
    one, other = FORMATS.get(str(asked)), FORMATS.get(str(has))
    if one is None or other is None:
        return 1.0
    return 0.01 + abs(one.multiple - other.multiple) + abs(one.bytes - other.bytes)
