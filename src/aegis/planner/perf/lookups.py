"""From an operation to the measured curve or grid that answers for it; each is built when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from aegis.planner.operations import (
    ContextAttention,
    ContextMla,
    GenerationAttention,
    GenerationMla,
    MlaModule,
    NoData,
)
from aegis.planner.perf.curves import Curve
from aegis.planner.perf.grid import Grid
from aegis.planner.perf.sites import Sites
from aegis.planner.tables.slices import LAYOUTS, Slice

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from aegis.planner.operations import (
        CollectiveKind,
        Floats,
        Leaf,
        Measured,
        MlaBmm,
        Moe,
    )
    from aegis.planner.perf.sol import Number, SpeedOfLight
    from aegis.planner.tables.slices import Key, Tables

T = TypeVar("T")
ELSEWHERE = "another split or number format, or --database-mode HYBRID"


class Lookups:
    """Tables, turned into what can be asked for latencies. Remembers which slices were used."""

    def __init__(self, tables: Tables, light: SpeedOfLight) -> None:
        self.used: set[tuple[str, Key]] = set()
        self._tables = tables
        self._light = light
        self._built: dict[Hashable, object] = {}

    def gemm(self, quant: str) -> Sites:
        """Return the GEMM table of a number format.

        Raises:
            NoData: it was not measured.
        """
        return self._once(
            ("gemm", quant),
            lambda: Sites(
                self._slice("gemm", [(quant,)]), quant, self._light, self._tables.load("gemm_order", (quant,))
            ),
        )

    def overhead(self, operation: str, quant: str, passes: int) -> Grid:
        """Return compute_scale or scale_matrix over (m, k), which moves `passes` bytes for each value.

        Raises:
            NoData: it was not measured.
        """

        def build() -> Grid:
            table = self._slice(operation, [(quant,)])
            return Grid(table, lambda m, k: self._light.transfer(passes * m * k))

        return self._once((operation, quant), build)

    def grid(
        self, op: ContextAttention | GenerationAttention | ContextMla | GenerationMla | MlaModule
    ) -> Grid:
        """Return the grid that answers for an attention, over (heads, length, batch) or (heads, batch, length).

        Raises:
            NoData: it was not measured.
        """
        match op:
            case ContextAttention():
                return self._context_attention(op)
            case GenerationAttention():
                return self._generation_attention(op)
            case ContextMla():
                return self._context_mla(op)
            case GenerationMla():
                return self._generation_mla(op)
            case MlaModule():
                return self._mla_module(op)

    def _context_attention(self, op: ContextAttention) -> Grid:
        """Return the first lane that has this attention, over (heads, length, batch)."""
        kv_heads = 0 if op.kv_heads == op.heads else op.kv_heads
        fixed = (op.fmha, op.kv_cache, kv_heads, op.head_size, op.window)

        def build() -> Grid:
            table = self._slice("context_attention", [(lane, *fixed) for lane in op.lanes], op)
            return Grid(
                table,
                lambda heads, length, batch: self._light.context_attention(op, heads, length, batch),
                roots=True,
            )

        return self._once(("context_attention", op.lanes, fixed), build)

    def _generation_attention(self, op: GenerationAttention) -> Grid:
        """Return the first lane that has this attention, over (heads, batch, length); none faster than light."""
        kv_heads = 0 if op.kv_heads == op.heads else op.kv_heads
        fixed = (op.kv_cache, kv_heads, op.head_size, op.window)

        def light(heads: Number, batch: Number, length: Number) -> Floats:
            return self._light.generation_attention(op, heads, batch, length)

        def build() -> Grid:
            table = self._slice("generation_attention", [(lane, *fixed) for lane in op.lanes], op)
            heads, batch, length = (axis.astype(np.float64) for axis in table.axes)
            return Grid(table._replace(latency=np.maximum(table.latency, light(heads, batch, length))), light)

        return self._once(("generation_attention", op.lanes, fixed), build)

    def _context_mla(self, op: ContextMla) -> Grid:
        """Return latent attention over (heads, length, batch)."""
        key = (op.fmha, op.kv_cache)
        return self._once(
            ("context_mla", key), lambda: self._mla_grid(op, self._slice("context_mla", [key], op))
        )

    def _generation_mla(self, op: GenerationMla) -> Grid:
        """Return latent attention over (heads, batch, length)."""
        return self._once(
            ("generation_mla", op.kv_cache),
            lambda: Grid(
                self._slice("generation_mla", [(op.kv_cache,)], op),
                lambda heads, batch, length: self._light.generation_mla(op, heads, batch, length),
            ),
        )

    def _mla_module(self, op: MlaModule) -> Grid:
        """Return the whole attention block of models with so many heads, or of the next smaller ones."""
        context = op.phase == "context"
        name = f"mla_{op.phase}_module"
        fixed = (op.fmha, op.kv_cache, op.gemm) if context else (op.kv_cache, op.gemm)

        def build() -> Grid:
            native = [int(key[-1]) for key in self._tables.keys(name) if key[:-1] == fixed]
            smaller = [heads for heads in native if heads <= op.native_heads]
            chosen = max(smaller) if smaller else min(native, default=op.native_heads)
            table = self._slice(name, [(*fixed, chosen)], op)
            if context:
                return self._mla_grid(op, table)
            return Grid(table, lambda heads, batch, length: self._light.mla_module(op, heads, batch, length))

        return self._once((name, fixed, op.native_heads), build)

    def mla_bmm(self, op: MlaBmm) -> tuple[Curve, float]:
        """Return a curve over tokens, and the part of it that counts; bfloat16 stands in for other formats.

        Sizes that are no power of two take their part of the next one.

        Raises:
            NoData: it was not measured.
        """

        def build() -> tuple[Curve, float]:
            keys = [(quant, op.stage) for quant in (op.quant, "bfloat16")]
            table = self._slice("mla_bmm", keys, op)
            for heads in (op.heads, 1 << (op.heads - 1).bit_length()):
                rows = narrow(table, (heads,))
                if len(rows.latency):
                    curve = Curve(rows.axes[-1], rows.latency, lambda tokens: self._light.mla_bmm(op, tokens))
                    return curve, op.heads / heads
            raise NoData(f"{op.name}: not measured for {op.heads} heads", hint=ELSEWHERE)

        return self._once(("mla_bmm", op.quant, op.stage, op.heads), build)

    def moe(self, op: Moe, lane: str) -> Curve | None:
        """Return a curve over tokens, or None if this split of these experts was not measured in a lane.

        A distribution of tokens that was not measured at all is taken as uniform.
        """
        site = (op.topk, op.experts, op.hidden, op.inter, op.moe_tp, op.moe_ep)

        def build() -> Curve | None:
            key: Key = (lane, op.quant, op.distribution)
            table = self._tables.load("moe", key)
            if table is None:
                key = (lane, op.quant, "uniform")
                table = self._tables.load("moe", key)
            rows = None if table is None else narrow(table, site)
            if rows is None or len(rows.latency) == 0:
                return None
            self.used.add(("moe", key))
            return Curve(rows.axes[-1], rows.latency, lambda tokens: self._light.moe(op, tokens))

        return self._once(("moe", lane, op.quant, op.distribution, op.gated, site), build)

    def all_reduce(self, gpus: int) -> tuple[Curve, int]:
        """Return the engine's all-reduce over elements, and of how many GPUs: so many, or those of them in a node.

        Nodes whose links are no slower than those within may have been measured together.

        Raises:
            NoData: it was not measured.
        """

        def build() -> tuple[Curve, int]:
            table, system = self._slice("custom_allreduce", [()]), self._light.system
            most = min(gpus, system.gpus_per_node)
            if gpus in table.axes[0] and system.bandwidth(gpus) == system.bandwidth(most):
                most = gpus
            return self._message(narrow(table, (most,)), most), most

        return self._once(("custom_allreduce", gpus), build)

    def collective(self, kind: CollectiveKind, gpus: int) -> tuple[Curve, int]:
        """Return a collective over elements for so many GPUs, or for the most that were measured; and how many.

        Raises:
            NoData: it was not measured.
        """

        def build() -> tuple[Curve, int]:
            table = self._slice("nccl", [(kind,)])
            most = min(gpus, int(table.axes[0][-1]))
            return self._message(narrow(table, (most,)), most), most

        return self._once(("nccl", kind, gpus), build)

    def block(self, op: Measured, keys: list[Key], build: Callable[[Slice], T]) -> T:
        """Return what is built of the first slice of a block that is there.

        Raises:
            NoData: none is.
        """

        def found() -> T:
            if not keys:
                raise NoData(f"{op.name}: the tables do not tell which of several kernels runs")
            return build(self._slice(op.table, keys, op))

        return self._once(("block", op.table, op.key), found)

    def _mla_grid(self, op: ContextMla | MlaModule, table: Slice) -> Grid:
        return Grid(
            table,
            lambda heads, length, batch: self._light.context_mla(op, heads, length, batch),
            roots=True,
        )

    def _message(self, rows: Slice, gpus: int) -> Curve:
        if len(rows.latency) == 0:
            raise NoData(f"no collectives of {gpus} GPUs were measured", hint=ELSEWHERE)
        return Curve(rows.axes[-1], rows.latency, np.asarray)  # beyond its ends, time grows with the size

    def _slice(self, operation: str, keys: Iterable[Key], op: Leaf | None = None) -> Slice:
        """Return the first slice that is there."""
        keys = list(keys)
        for key in keys:
            table = self._tables.load(operation, key)
            if table is not None and len(table.latency):
                self.used.add((operation, key))
                return table
        where = f"{self._tables.backend} {self._tables.version} on {self._tables.system}"
        what = operation if op is None or op.name == operation else f"{op.name} ({operation})"
        raise NoData(f"{what}: no {_in_words(operation, keys[0])} in the tables of {where}", hint=ELSEWHERE)

    def _once(self, name: Hashable, build: Callable[[], T]) -> T:
        """Build a thing the first time; a NoData is remembered too."""
        if name not in self._built:
            try:
                self._built[name] = build()
            except NoData as error:
                self._built[name] = error
        found = self._built[name]
        if isinstance(found, NoData):
            raise found
        return found  # type: ignore[return-value]


def narrow(table: Slice, values: tuple[int, ...]) -> Slice:
    """Return the rows whose first axes have these values."""
    start, stop = 0, len(table.latency)
    for axis, value in zip(table.axes, values, strict=False):
        part = axis[start:stop]
        stop = start + int(part.searchsorted(value, side="right"))
        start += int(part.searchsorted(value, side="left"))
    return Slice(tuple(axis[start:stop] for axis in table.axes), table.latency[start:stop])


def _in_words(operation: str, key: Key) -> str:
    """Return what chooses a slice, with the names of its columns where there are several."""
    if len(key) == 1:
        return str(key[0])
    columns = zip(LAYOUTS[operation].key, key, strict=True)
    return ", ".join(f"{name} {value}" for name, value in columns if value not in {"default", 0})
