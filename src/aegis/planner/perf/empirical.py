"""Latency as the speed of light over the utilisation of the two nearest measured points (mode EMPIRICAL).

What was not measured at all borrows from its nearest relative (transfer.py). Rules of aiconfigurator 0.12.0
(Apache-2.0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from msgspec.structs import replace

from aegis.planner.operations import (
    AllReduce,
    Collective,
    ContextAttention,
    ContextMla,
    Gemm,
    GenerationAttention,
    GenerationMla,
    Memory,
    MlaBmm,
    MlaModule,
    Moe,
    NoData,
    PointToPoint,
)
from aegis.planner.perf import transfer
from aegis.planner.perf.sites import rows_of
from aegis.planner.perf.sol import per_gpu, zigzag
from aegis.planner.perf.utilisation import Utilisation, nearest_delta

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from numpy.typing import NDArray

    from aegis.planner.operations import Floats, Leaf, Query
    from aegis.planner.perf.curves import Curve
    from aegis.planner.perf.lookups import Lookups
    from aegis.planner.perf.sol import Number, SpeedOfLight
    from aegis.planner.tables.slices import Tables

_FEW_TOKENS = 128
_OnGrid: TypeAlias = ContextAttention | GenerationAttention | ContextMla | GenerationMla | MlaModule


class Empirical:
    """Utilisation of measured points, for one system and engine."""

    def __init__(self, light: SpeedOfLight, lookups: Lookups, tables: Tables) -> None:
        self._light = light
        self._lookups = lookups
        self._tables = tables
        self._built: dict[Hashable, tuple[Utilisation, float]] = {}

    def latency(self, operation: Leaf, at: Query) -> Floats:  # noqa: PLR0911 - one line for each operation
        """Return ms of one occurrence.

        Raises:
            NoData: nothing like it was measured.
        """
        match operation:
            case Gemm():
                return self._gemm(operation, rows_of(operation, at).astype(np.float64))
            case ContextAttention() | ContextMla() | MlaModule(phase="context"):
                return self._context(operation, at)
            case GenerationAttention() | GenerationMla() | MlaModule():
                used, part = self._of(operation)
                batch, length = at.batch.astype(np.float64), at.length.astype(np.float64)
                ideal = self._ideal(operation, operation.heads, batch, length)
                return ideal / (used((operation.heads,), (batch, length)) * part)
            case MlaBmm():
                return self._mla_bmm(operation, at.batch.astype(np.float64))
            case Moe():
                return self._moe(operation, (at.tokens * operation.attention_dp).astype(np.float64))
            case Memory():
                return self._light.memory_bound(
                    operation.bytes_per_token * per_gpu(at.tokens, operation.token_split)
                )
            case PointToPoint():
                return self._light.send(operation, at)
            case AllReduce() | Collective():
                return self._message(operation, per_gpu(at.tokens, operation.token_split) * operation.width)
        raise NoData(f"{operation.name}: no utilisation is known for {type(operation).__name__} operations")

    def _gemm(self, op: Gemm, m: Floats) -> Floats:
        quant = "fp8" if op.quant == "fp8_static" else op.quant
        used, part = self._once(
            ("gemm", quant), lambda: transfer.gemm(quant, self._tables, self._lookups, self._light)
        )
        value = self._light.gemm(op.quant, m, op.n, op.k) / (used((op.n, op.k), (m,)) * part)
        if op.quant != "fp8_static":
            return value
        value = value - self._overhead("compute_scale", m, op.k)
        if op.quantized_input:
            value = value - self._overhead("scale_matrix", m, op.k)
        return np.maximum(value, self._light.gemm(op.quant, m, op.n, op.k))

    def _overhead(self, name: str, m: Floats, k: int) -> Floats:
        passes = 3 if name == "scale_matrix" else 2
        grid = self._lookups.overhead(name, "fp8", passes)
        (all_m, all_k), latency = grid.axes, grid.latency

        def ideal(rows: Number, columns: Number) -> Floats:
            return self._light.transfer(passes * rows * columns)

        if name == "compute_scale":
            return nearest_delta((all_m, all_k), latency, (m, np.asarray(float(k))), ideal)
        used, _ = self._once(
            name, lambda: (Utilisation((all_k, all_m), ideal(all_m, all_k), latency, fixed=1), 1.0)
        )
        return ideal(m, np.asarray(float(k))) / used((k,), (m,))

    def _context(self, op: ContextAttention | ContextMla | MlaModule, at: Query) -> Floats:
        used, part = self._of(op)
        batch = at.batch.astype(np.float64)

        def kernel(new: Floats, before: Floats) -> Floats:
            return self._ideal(op, op.heads, before + new, batch, before) / used(
                (op.heads,), (before + new, batch)
            )

        cp = 1 if isinstance(op, MlaModule) else op.cp
        value = zigzag(kernel, at.length.astype(np.float64), at.prefix.astype(np.float64), cp) / part
        if not isinstance(op, ContextAttention):
            return value
        return value + self._light.extras(op, self._light.extra_tokens(op, at), ideal=False)

    def _mla_bmm(self, op: MlaBmm, tokens: Floats) -> Floats:
        curve, part = self._lookups.mla_bmm(op)
        measured = replace(op, heads=round(op.heads / part))
        used = self._of_curve(op, curve, lambda x: self._light.mla_bmm(measured, x))
        return self._light.mla_bmm(measured, tokens) / used((), (tokens,)) * part

    def _of(self, op: _OnGrid) -> tuple[Utilisation, float]:
        """Return the utilisation of an attention, or of its nearest relative, and how the two compare."""

        def build() -> tuple[Utilisation, float]:
            if not isinstance(op, ContextAttention | GenerationAttention):
                return self._utilisation(op), 1.0
            for relative, part in transfer.attention(op, self._tables):
                try:
                    return self._utilisation(relative), part
                except NoData:
                    continue
            raise NoData(
                f"{op.name}: no attention with {op.kv_heads} KV heads and a {op.kv_cache} cache was measured"
            )

        heads = 0 if isinstance(op, ContextAttention | GenerationAttention) and op.heads == op.kv_heads else 1
        return self._once(replace(op, name="", count=1.0, heads=heads), build)

    def _moe(self, op: Moe, tokens: Floats) -> Floats:
        def one(lane: str) -> Floats:
            used, part = self._once(
                (replace(op, name="", count=1.0), lane),
                lambda: transfer.moe(op, lane, self._tables, self._lookups, self._light),
            )
            return self._light.moe(op, tokens) / (used((), (tokens,)) * part)

        few = tokens <= _FEW_TOKENS
        if (
            op.quant == "nvfp4"
            and op.gated
            and few.any()
            and self._lookups.moe(op, "min_latency") is not None
        ):
            return one("min_latency") if few.all() else np.where(few, one("min_latency"), one("default"))
        return one("default")

    def _message(self, op: AllReduce | Collective, elements: NDArray[np.floating]) -> Floats:
        if op.gpus <= 1:
            return np.zeros(elements.shape)
        if isinstance(op, AllReduce):
            curve, measured = self._lookups.all_reduce(op.gpus)
        else:
            curve, measured = self._lookups.collective(op.kind, op.gpus)
        kind = op.kind if isinstance(op, Collective) else "all_reduce"
        used = self._of_curve(op, curve, lambda size: self._light.collective(kind, measured, size))
        return self._light.collective(kind, op.gpus, elements) / used((), (elements,))

    def _of_curve(self, op: Leaf, curve: Curve, ideal: Callable[[Floats], Floats]) -> Utilisation:
        return self._once(
            replace(op, name="", count=1.0),
            lambda: (Utilisation((curve.points,), ideal(curve.points), curve.latency, fixed=0), 1.0),
        )[0]

    def _utilisation(self, op: _OnGrid) -> Utilisation:
        grid = self._lookups.grid(op)
        heads, second, third = (axis.astype(np.float64) for axis in grid.axes)
        return Utilisation(grid.axes, self._ideal(op, heads, second, third), grid.latency, fixed=1)

    def _ideal(
        self, op: _OnGrid, heads: float | Floats, second: Floats, third: Floats, before: Floats | float = 0.0
    ) -> Floats:
        """Second and third axes as the grids have them: length and batch of prefills, batch and length of decodes."""
        match op:
            case ContextAttention():
                return self._light.context_attention(op, heads, second, third, before)
            case ContextMla() | MlaModule(phase="context"):
                return self._light.context_mla(op, heads, second, third, before)
            case GenerationAttention():
                return self._light.generation_attention(op, heads, second, third)
            case GenerationMla():
                return self._light.generation_mla(op, heads, second, third)
            case MlaModule():
                return self._light.mla_module(op, heads, second, third)

    def _once(
        self, name: Hashable, build: Callable[[], tuple[Utilisation, float]]
    ) -> tuple[Utilisation, float]:
        if name not in self._built:
            self._built[name] = build()
        return self._built[name]
