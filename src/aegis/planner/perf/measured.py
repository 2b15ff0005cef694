"""Latencies from measured tables, by the rules of aiconfigurator 0.12.0 (Apache-2.0), and its other database modes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.operations import (
    AllReduce,
    Collective,
    ContextAttention,
    ContextMla,
    ExpertExchange,
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
from aegis.planner.operations import Measured as Block
from aegis.planner.perf.blocks import Blocks
from aegis.planner.perf.empirical import Empirical
from aegis.planner.perf.sites import rows_of
from aegis.planner.perf.sol import SpeedOfLight, per_gpu, zigzag
from aegis.planner.perf.wide import WideLookups

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aegis.planner.operations import Floats, Ints, Leaf, Query
    from aegis.planner.perf.grid import Grid
    from aegis.planner.problem import DatabaseMode
    from aegis.planner.systems import System
    from aegis.planner.tables.slices import Tables

_FEW_TOKENS = 128  # up to here, nvfp4 experts have kernels of their own
_SAMPLES = 5  # lengths around the one asked for, over which decode attention is averaged


class Measured:
    """What a system, engine and version take for single operations. Implements `operations.Performance`.

    Modes: SILICON, tables alone; SOL, the speed of light; EMPIRICAL, it over the utilisation of the nearest measured
    points; HYBRID, tables and, where they have nothing, EMPIRICAL.
    """

    def __init__(
        self,
        system: System,
        tables: Tables,
        mode: DatabaseMode = "SILICON",
        *,
        extras_per_token: bool = False,
    ) -> None:
        """Take tables; `extras_per_token` is the correction `attention-extras-per-token`."""
        self.system = system
        self.mode = mode
        self._tables = tables
        light = SpeedOfLight(system, extras_per_token=extras_per_token)
        self._lookups = WideLookups(tables, light)
        silicon = _Silicon(light, self._lookups, strict=mode == "HYBRID")
        empirical = Empirical(light, self._lookups, tables)
        chains: dict[DatabaseMode, tuple[_Silicon | SpeedOfLight | Empirical, ...]] = {
            "SILICON": (silicon,),
            "SOL": (light,),
            "EMPIRICAL": (empirical,),
            "HYBRID": (silicon, empirical),
        }
        self._chain = chains[mode]
        self._blocks = Blocks(system, self._lookups, tables)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is known to be wrong with the slices that were used so far."""
        findings = getattr(self._tables, "findings_for", None)
        return () if findings is None else tuple(each.what for each in findings(self._lookups.used))

    def latency(self, operation: Leaf, at: Query) -> Floats:
        """Return ms of one occurrence, in the shape that the query broadcasts to.

        Raises:
            NoData: the tables cannot answer for this operation.
        """
        value = self._value(operation, at)
        shape = np.broadcast(*at).shape
        return value if value.shape == shape else np.broadcast_to(value, shape)

    def _value(self, operation: Leaf, at: Query) -> Floats:
        if isinstance(operation, Block):
            return self._blocks.latency(operation, at, ideal=self.mode == "SOL")
        *first, last = self._chain
        for each in first:
            try:
                return each.latency(operation, at)
            except NoData:
                continue
        return last.latency(operation, at)


class _Silicon:
    """Tables alone."""

    def __init__(self, light: SpeedOfLight, lookups: WideLookups, *, strict: bool) -> None:
        self._strict = strict  # the speed of light does not stand in: something else estimates
        self._light = light
        self._lookups = lookups
        self._system = light.system

    def latency(self, operation: Leaf, at: Query) -> Floats:  # noqa: C901, PLR0911 - one line for each operation
        match operation:
            case Gemm():
                return self._gemm(operation, at)
            case Memory():
                return self._light.memory_bound(
                    operation.bytes_per_token * per_gpu(at.tokens, operation.token_split)
                )
            case AllReduce():
                return self._all_reduce(operation, at)
            case ContextAttention():
                return self._context_attention(operation, at)
            case GenerationAttention():
                return self._generation_attention(operation, at)
            case ExpertExchange():
                tokens = (at.tokens // operation.attention_split).astype(np.float64)
                return self._lookups.exchange(operation, self._system.gpus_per_node)(tokens)
            case Moe():
                return self._moe(operation, (at.tokens * operation.attention_dp).astype(np.float64))
            case Collective():
                return self._collective(
                    operation, per_gpu(at.tokens, operation.token_split) * operation.width
                )
            case PointToPoint():
                return self._light.send(operation, at)
            case ContextMla() | MlaModule(phase="context"):
                return _context(self._lookups.grid(operation), operation, at)
            case GenerationMla() | MlaModule():
                return self._lookups.grid(operation)((operation.heads,), at.batch, at.length)
            case MlaBmm():
                curve, part = self._lookups.mla_bmm(operation)
                return curve(at.batch.astype(np.float64)) * part
        raise NoData(f"{operation.name}: no rule for {type(operation).__name__} operations")

    def _gemm(self, op: Gemm, at: Query) -> Floats:
        rows = rows_of(op, at)
        m = rows.astype(np.float64)
        if op.quant != "fp8_static":
            sites = self._lookups.gemm(op.quant)
            try:
                return sites(m, op.n, op.k)
            except NoData:
                if not op.below_grid or self._strict:
                    raise
                return self._light.gemm(op.quant, m, op.n, op.k)
        # fp8 with scales known beforehand was not measured: dynamic fp8 less what finding the scales takes.
        value = self._lookups.gemm("fp8")(m, op.n, op.k) - self._overhead("compute_scale", rows, op.k)
        if op.quantized_input:
            value = value - self._overhead("scale_matrix", rows, op.k)
        return np.maximum(value, self._light.gemm(op.quant, m, op.n, op.k))

    def _overhead(self, name: str, rows: Ints, k: int) -> Floats:
        """Finding scales (compute_scale) or applying them (scale_matrix): at the nearest edge beyond the table.

        Applying them grows with the size from there.
        """
        apply = name == "scale_matrix"
        grid = self._lookups.overhead(name, "fp8", 3 if apply else 2)
        all_m, all_k = grid.axes
        m = rows.clip(all_m.min(), all_m.max())
        near_k = np.asarray(min(max(k, int(all_k.min())), int(all_k.max())))
        value = grid((), m, near_k)
        return np.asarray(value * (rows * k / (m * near_k))) if apply else value

    def _context_attention(self, op: ContextAttention, at: Query) -> Floats:
        kernel = _context(self._lookups.grid(op), op, at)
        return kernel + self._light.extras(op, self._light.extra_tokens(op, at), ideal=False)

    def _generation_attention(self, op: GenerationAttention, at: Query) -> Floats:
        grid = self._lookups.grid(op)
        low = np.maximum(1, (at.length * 0.9).astype(np.int64))
        high = np.maximum(low, (at.length * 1.1).astype(np.int64))
        shape = np.broadcast_shapes(at.batch.shape, at.length.shape)
        steps = np.arange(_SAMPLES).reshape(-1, *(1,) * len(shape))
        lengths = low + (high - low) * steps // (_SAMPLES - 1)
        value: Floats = grid((op.heads,), at.batch, lengths).sum(axis=0)
        return value / _SAMPLES

    def _moe(self, op: Moe, tokens: Floats) -> Floats:
        wide = self._lookups.wide_moe(op) if op.wide else None
        if wide is not None:
            return wide(tokens)
        usual = self._lookups.moe(op, "default")
        few = None
        if op.quant == "nvfp4" and op.gated and (tokens <= _FEW_TOKENS).any():
            few = self._lookups.moe(op, "min_latency")
        if few is not None and (tokens <= _FEW_TOKENS).all():
            return few(tokens)
        if usual is None:
            raise NoData(
                f"{op.name}: no {op.quant} experts of {op.hidden} x {op.inter} ({op.topk} of {op.experts}) "
                f"split {op.moe_tp} x {op.moe_ep} in the tables",
                hint="another split of the experts, or --database-mode HYBRID",
            )
        if few is None:
            return usual(tokens)
        return np.where(tokens <= _FEW_TOKENS, few(np.minimum(tokens, _FEW_TOKENS)), usual(tokens))

    def _all_reduce(self, op: AllReduce, at: Query) -> Floats:
        elements = per_gpu(at.tokens, op.token_split) * op.width
        if op.gpus <= 1:
            return np.zeros(elements.shape)
        curve, measured = self._lookups.all_reduce(op.gpus)
        return curve(elements) * farther(self._system, measured, op.gpus)

    def _collective(self, op: Collective, elements: NDArray[np.floating]) -> Floats:
        if op.gpus <= 1:
            return np.zeros(elements.shape)
        curve, measured = self._lookups.collective(op.kind, op.gpus)
        return curve(elements) * farther(self._system, measured, op.gpus)


def farther(system: System, measured: int, gpus: int) -> float:
    """Return what a collective of more GPUs than were measured takes, relative to these: its share and its links."""
    if gpus == measured:
        return 1.0
    share = (gpus - 1) / gpus * measured / max(measured - 1, 1)
    return share * system.bandwidth(measured) / system.bandwidth(gpus)


def _context(grid: Grid, op: ContextAttention | ContextMla | MlaModule, at: Query) -> Floats:
    """Look up the full length, and count the part of the score matrix that the new tokens fill."""

    def kernel(new: Ints, before: Ints) -> Floats:
        length = new + before
        value = grid((op.heads,), length, at.batch)
        if not before.any():
            return value
        return np.asarray(value * (1 - np.square(before / np.maximum(length, 1))))

    cp = 1 if isinstance(op, MlaModule) else op.cp
    return zigzag(kernel, at.length, at.prefix, cp)
