"""Latencies under the guide's rules: tables of its time, completed to fixed keys and interpolated.

Formulas: NVIDIA AIConfigurator of October 2025 (Apache-2.0), from which the tables are carried over too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

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
    Moe,
    NoData,
    PointToPoint,
)
from aegis.planner.perf.guide_grids import between_planes, bracket, in_planes, on_curve
from aegis.planner.perf.guide_store import GuideStore

if TYPE_CHECKING:
    from aegis.planner.operations import Floats, Ints, Leaf, Query
    from aegis.planner.systems import System
    from aegis.planner.tables.slices import Tables

_FEW_TOKENS = 128  # up to here nvfp4 experts run on kernels of their own
_MOST_REDUCED = 8  # GPUs: larger all-reduces are scaled up from this one

_Attention: TypeAlias = ContextAttention | GenerationAttention | ContextMla | GenerationMla


class GuideTables:
    """What operations took in the guide's time.

    `exact`: cubic between the measured sizes of products and context attention, as it was then; otherwise linear,
    which moves a plan by at most 0.2 %.
    """

    def __init__(self, system: System, tables: Tables, exact: bool = False) -> None:
        self.system = system
        self.notes: tuple[str, ...] = ()
        self._store = GuideStore(system, tables)
        self._exact = exact
        self._gemms: dict[tuple[str, int, int], tuple[Ints, Floats]] = {}

    def latency(self, operation: Leaf, at: Query) -> Floats:
        """Return ms of one occurrence, in the shape that the query broadcasts to.

        Raises:
            NoData: the tables have no such operation, or end before it.
        """
        match operation:
            case Memory():
                values = self._memory(_tokens(operation, at) * operation.bytes_per_token)
            case PointToPoint():
                sent = _tokens(operation, at) * operation.bytes_per_token
                values = 1e3 * (sent / self.system.inter_node_bandwidth + self.system.p2p_latency)
            case Gemm():
                values = self._gemm(operation, _tokens(operation, at))
            case ContextAttention() | GenerationAttention() | ContextMla() | GenerationMla():
                values = self._attention(operation, at)
            case MlaBmm():
                values = on_curve(*self._store.bmm(operation), at.tokens)
            case Moe():
                values = self._moe(operation, at.tokens * operation.attention_dp)
            case AllReduce():
                values = self._all_reduce(operation.gpus, _tokens(operation, at) * operation.width)
            case Collective():
                values = self._collective(operation, _tokens(operation, at) * operation.width)
            case _:
                raise NoData(
                    f"{operation.name}: the tables of the guide's time have no such operation",
                    hint="take the current rules: --estimator aegis",
                )
        shape = np.broadcast_shapes(*(each.shape for each in at))
        latency: Floats = np.broadcast_to(np.asarray(values, dtype=np.float64), shape)
        return latency

    def _memory(self, moved: Floats) -> Floats:
        system = self.system
        rate = system.memory_bandwidth * system.memory_efficiency
        return 1e3 * (moved / rate + system.memory_latency)

    def _gemm(self, operation: Gemm, tokens: Floats) -> Floats:
        quant, n, k = site = operation.quant, operation.n, operation.k
        if site not in self._gemms:
            (m, *axes), values = self._store.lattice("gemm", (quant,))
            place = np.asarray(n), np.asarray(k)
            names = f"columns ({operation.name})", f"rows ({operation.name})"
            self._gemms[site] = m, in_planes(values, (axes[0], axes[1]), place, names, cubic=self._exact)
        m, curve = self._gemms[site]
        bracket(m, tokens, f"tokens ({operation.name})")
        return on_curve(m, curve, tokens)

    def _attention(self, operation: _Attention, at: Query) -> Floats:
        context = isinstance(operation, ContextAttention | ContextMla)
        lattice = self._store.attention(operation)
        full = at.length + at.prefix if context else at.length
        planes, beyond = between_planes(lattice, operation.heads, f"heads ({operation.name})")
        place = (full, at.batch) if context else (at.batch, full)
        names = (f"tokens of a sequence ({operation.name})", f"sequences ({operation.name})")
        low, high = in_planes(
            planes,
            lattice.axes[1:],
            place,
            names if context else names[::-1],
            cubic=context and self._exact,
        )
        values: Floats = low + (high - low) * beyond
        if context and at.prefix.any():  # pairs of cached tokens need not be looked at again
            values = values * (1 - (at.prefix / full) ** 2)
        return values

    def _moe(self, operation: Moe, tokens: Ints) -> Floats:
        usual = self._store.moe(operation, "default")
        few = self._store.moe(operation, "min_latency") if operation.quant == "nvfp4" else None
        if usual is None or few is None:
            return on_curve(*self._store.required(usual or few, operation), tokens)
        return np.where(tokens <= _FEW_TOKENS, on_curve(*few, tokens), on_curve(*usual, tokens))

    def _all_reduce(self, gpus: int, elements: Floats) -> Floats:
        if gpus == 1:
            return np.zeros(())
        values = on_curve(*self._store.sizes("custom_allreduce", (), min(gpus, _MOST_REDUCED)), elements)
        return values * self._larger_group(gpus, _MOST_REDUCED) if gpus > _MOST_REDUCED else values

    def _collective(self, operation: Collective, elements: Floats) -> Floats:
        gpus = operation.gpus
        if gpus == 1:
            return np.zeros(())
        measured = self._store.largest_group((operation.kind,))
        values = on_curve(*self._store.sizes("nccl", (operation.kind,), min(gpus, measured)), elements)
        return values * self._larger_group(gpus, measured) if gpus > measured else values

    def _larger_group(self, gpus: int, measured: int) -> float:
        """Return the factor of a ring over more GPUs than were measured: more steps, and the slower link."""
        system = self.system
        ring = (gpus - 1) / gpus * measured / (measured - 1)
        leaves_node = measured <= system.gpus_per_node < gpus
        return ring * (system.intra_node_bandwidth / system.inter_node_bandwidth if leaves_node else 1.0)


def _tokens(operation: Memory | PointToPoint | Gemm | AllReduce | Collective, at: Query) -> Floats:
    seen = at.sampled if isinstance(operation, Gemm) and operation.sampled else at.tokens
    return np.ceil(seen / operation.token_split, dtype=np.float64)
