"""Latencies of systems that nobody has tables for: the hardware's limits over fitted efficiency curves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

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
from aegis.planner.perf import work
from aegis.planner.perf.efficiency import bands, efficiency, family
from aegis.planner.perf.sol import SpeedOfLight, per_gpu, zigzag

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from aegis.planner.operations import Floats, Ints, Leaf, Query
    from aegis.planner.perf.efficiency import Efficiency
    from aegis.planner.perf.work import Dimension, Work
    from aegis.planner.problem import Backend
    from aegis.planner.systems import System

_PASSES = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "alltoall": 1}


class Analytic:
    """What a system and engine are estimated to take for single operations. Implements `operations.Performance`."""

    def __init__(
        self,
        system: System,
        backend: Backend = "vllm",
        curves: Efficiency | None = None,
        *,
        extras_per_token: bool = False,
    ) -> None:
        """Take curves, or those that come with the project."""
        self.system = system
        self.backend = backend
        self._curves = efficiency() if curves is None else curves
        self._family = family(system)
        self._factor = self._curves.factor(system)
        self._light = SpeedOfLight(system)
        self._extras_per_token = extras_per_token

    @property
    def notes(self) -> tuple[str, ...]:
        """That the figures are estimated, and how far they may be off."""
        system = self.system
        band = f", +-{system.uncertainty:.0%} in 9 of 10 cases" if system.uncertainty else ""
        note = f"{system.name}: nobody has measured tables; step times are estimated{band}"
        if system.intra_node_bandwidth < work.FAST_LINK:
            slow = bands(self._curves)["slow links"]
            note += f"; several GPUs over its slow links: up to {slow:.0%} off"
        return (note,)

    def latency(self, operation: Leaf, at: Query) -> Floats:
        """Return ms of one occurrence, in the shape that the query broadcasts to.

        Raises:
            NoData: there is no curve for it, or the system does not compute in its number format.
        """
        value = self._latency(operation, at)
        return np.broadcast_to(value, np.broadcast_shapes(value.shape, *(axis.shape for axis in at)))

    def _latency(self, operation: Leaf, at: Query) -> Floats:  # noqa: C901, PLR0911 - one case for each operation
        match operation:
            case Memory():
                moved = operation.bytes_per_token * per_gpu(at.tokens, operation.token_split)
                return self._light.memory_bound(moved)
            case Gemm():
                rows = at.sampled if operation.sampled else per_gpu(at.tokens, operation.token_split)
                done = work.gemm(self.system, operation.quant, np.maximum(rows, 1), operation.n, operation.k)
                return self._curve("gemm", operation.quant, done)
            case ContextAttention():
                return self._context_attention(operation, at)
            case GenerationAttention():
                return self._generation_attention(operation, at)
            case ContextMla():
                return self._context_mla(operation, at)
            case GenerationMla(kv_cache=kv_cache):
                done = work.generation_mla(self.system, kv_cache, operation.heads, at.batch, at.length)
                return self._curve("generation_mla", kv_cache, done)
            case MlaBmm():
                done = work.mla_bmm(self.system, operation.quant, operation.heads, at.batch)
                return self._curve("mla_bmm", operation.quant, done)
            case Moe():
                return self._moe(operation, at)
            case AllReduce():
                sent = per_gpu(at.tokens, operation.token_split) * operation.width
                return self._collective(("custom_allreduce", "half", 2), operation.gpus, sent)
            case Collective(kind=kind):
                sent = per_gpu(at.tokens, operation.token_split) * operation.width
                return self._collective(("nccl", kind, _PASSES[kind]), operation.gpus, sent)
            case PointToPoint():
                sent = operation.bytes_per_token * per_gpu(at.tokens, operation.token_split)
                return np.asarray(sent / self.system.inter_node_bandwidth + self.system.p2p_latency) * 1000.0
        raise NoData(
            f"{self.system.name}: {operation.name} was measured as one piece elsewhere, and cannot be estimated",
            hint="a system with tables of its own (`aegis plan tables list`), or a model without such layers",
        )

    def _curve(self, operation: str, number_format: str, done: Work) -> Floats:
        curve = self._curves.curve(operation, number_format, self.backend)
        return curve.latency(done, self._family, self._factor)

    def _context_attention(self, op: ContextAttention, at: Query) -> Floats:
        heads = work.Heads(op.heads, op.kv_heads, op.head_size, op.window)
        kernel = self._context(
            op,
            at,
            lambda length: self._curve(
                "context_attention",
                f"{op.fmha}/{op.kv_cache}",
                work.context_attention(self.system, (op.fmha, op.kv_cache), heads, at.batch, length),
            ),
        )
        tokens = per_gpu(at.batch * at.length, op.cp) if self._extras_per_token else 1
        return kernel + self._light.extras(op, tokens, ideal=False)

    def _generation_attention(self, op: GenerationAttention, at: Query) -> Floats:
        heads = work.Heads(op.heads, op.kv_heads, op.head_size, op.window)
        done = work.generation_attention(self.system, op.kv_cache, heads, at.batch, at.length)
        return self._curve("generation_attention", op.kv_cache, done)

    def _context_mla(self, op: ContextMla, at: Query) -> Floats:
        return self._context(
            op,
            at,
            lambda length: self._curve(
                "context_mla",
                f"{op.fmha}/{op.kv_cache}",
                work.context_mla(self.system, (op.fmha, op.kv_cache), op.heads, at.batch, length),
            ),
        )

    @staticmethod
    def _context(op: ContextAttention | ContextMla, at: Query, of_length: Callable[[Ints], Floats]) -> Floats:
        """Price the full length, and count the part of the score matrix that the new tokens fill, as tables do."""

        def kernel(new: Ints, before: Ints) -> Floats:
            length = np.maximum(new + before, 1)
            part: Floats = 1 - np.square(before / length)
            return of_length(length) * part

        return zigzag(kernel, at.length, at.prefix, op.cp)

    def _moe(self, op: Moe, at: Query) -> Floats:
        experts = work.Experts(
            op.topk, op.experts, op.hidden, op.inter, op.moe_tp, op.moe_ep, 3 if op.gated else 2
        )
        tokens = np.maximum(at.tokens * op.attention_dp, 1)
        skewed = op.distribution.startswith("power_law")
        return self._curve("moe", op.quant, work.moe(self.system, op.quant, experts, tokens, skewed=skewed))

    def _collective(
        self, what: tuple[str, str, int], gpus: int, elements: NDArray[np.floating[Any]]
    ) -> Floats:
        """Within a node as the curve; beyond it the same over the slower links, and a hop for each doubling of the nodes.

        No table has measured collectives of several nodes.
        """
        operation, number_format, passes = what
        if gpus <= 1:
            return np.zeros(np.shape(elements))
        near = min(gpus, max(2, self.system.gpus_per_rack or self.system.gpus_per_node))

        def within(size: Dimension) -> Floats:
            return self._curve(operation, number_format, work.collective(self.system, passes, near, size))

        time = within(np.maximum(elements, 1))
        if near == gpus:
            return time
        start = within(1)
        share = (gpus - 1) / gpus * near / (near - 1)
        slower = max(1.0, self.system.bandwidth(near) / self.system.bandwidth(gpus))
        hops = math.ceil(math.log2(-(-gpus // near)))
        return start + (time - start) * share * slower + passes * hops * self.system.p2p_latency * 1000
