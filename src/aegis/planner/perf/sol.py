"""The speed of light: no operation is faster than its arithmetic, its memory traffic or its link allow.

One formula per operation, over arrays, in ms. They are what measured latencies are compared with (utilisation = speed
of light / latency), what carries an answer beyond the last measured point, and what the mode SOL answers.
The formulas are those of aiconfigurator 0.12.0 (Apache-2.0); its conventions are kept where they are rough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from aegis.planner.models.formats import bytes_of, flops_of
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

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from aegis.planner.operations import CollectiveKind, Floats, Ints, Leaf, Query
    from aegis.planner.systems import System

Number: TypeAlias = "float | NDArray[Any]"
Axis = TypeVar("Axis", "Ints", "Floats")

# Multi-head latent attention of DeepSeek-V2 and after: sizes of a head and of the latent space.
_HEAD, _LATENT, _ROPE = 128, 512, 64
_MLA_CONTEXT = 2 * _HEAD + _ROPE  # a query/key of 192 and a value of 128
_MLA_CACHE = _LATENT + _ROPE
_MLA_GENERATION = _MLA_CACHE + _LATENT  # 576 dot products, 512 weighted sums
_FP8_SM = 89  # the first compute capability with fp8 tensor cores
_EXTRAS = 1.1  # of what an engine does around the attention kernel


def per_gpu(tokens: Ints, split: int) -> Ints:
    """Return the tokens of the busiest GPU where `split` of them share the sequence."""
    return tokens if split == 1 else -(-tokens // split)


def zigzag(kernel: Callable[[Axis, Axis], Floats], new: Axis, before: Axis, cp: int) -> Floats:
    """Return what the busiest of `cp` GPUs takes: a piece from the start of the sequence, and one from its end."""
    if cp == 1:
        return kernel(new, before)
    piece: Axis = np.maximum(1, -(-new // (2 * cp)))
    return kernel(piece, before) + kernel(piece, before + new - piece)


class SpeedOfLight:
    """Formulas for one system; as a `Performance` it answers with them alone. Latencies in ms."""

    def __init__(self, system: System, *, extras_per_token: bool = False) -> None:
        self.system = system
        self.notes: tuple[str, ...] = ()
        self._extras_per_token = extras_per_token

    def latency(self, operation: Leaf, at: Query) -> Floats:  # noqa: C901, PLR0911 - one line for each operation
        """Return ms of one occurrence, in the shape that the query broadcasts to.

        Raises:
            NoData: there is no formula for it, or the system does not compute in its number format.
        """
        tokens, batch, length, prefix = (each.astype(np.float64) for each in at[:4])
        match operation:
            case Memory():
                return self.transfer(operation.bytes_per_token * per_gpu(at.tokens, operation.token_split))
            case Gemm():
                rows = at.sampled if operation.sampled else per_gpu(at.tokens, operation.token_split)
                return self.gemm(operation.quant, rows.astype(np.float64), operation.n, operation.k)
            case ContextAttention():
                return self._context_attention(operation, at)
            case ContextMla() | MlaModule(phase="context"):
                return zigzag(
                    lambda new, before: self.context_mla(
                        operation, operation.heads, before + new, batch, before
                    ),
                    length,
                    prefix,
                    operation.cp if isinstance(operation, ContextMla) else 1,
                )
            case GenerationAttention():
                return self.generation_attention(operation, operation.heads, batch, length)
            case GenerationMla():
                return self.generation_mla(operation, operation.heads, batch, length)
            case MlaModule():
                return self.mla_module(operation, operation.heads, batch, length)
            case MlaBmm():
                return self.mla_bmm(operation, batch)
            case Moe():
                return self.moe(operation, tokens * operation.attention_dp)
            case AllReduce():
                sent = per_gpu(at.tokens, operation.token_split) * operation.width
                return self.collective("all_reduce", operation.gpus, sent)
            case Collective():
                sent = per_gpu(at.tokens, operation.token_split) * operation.width
                return self.collective(operation.kind, operation.gpus, sent)
            case PointToPoint():
                return self.send(operation, at, start=False)
        raise NoData(f"there is no speed-of-light formula for {operation.name}")

    def transfer(self, size: Number) -> Floats:
        """Bytes through the memory once."""
        return np.asarray(size) / self.system.memory_bandwidth * 1000

    def gemm(self, quant: str, m: Number, n: Number, k: Number) -> Floats:
        """(m, k) x (k, n); all three matrices are counted at the width of the weights."""
        compute = 2 * m * n * k / flops_of(quant, self.system)
        memory = bytes_of(quant) * (m * n + m * k + n * k) / self.system.memory_bandwidth
        return np.maximum(compute, memory) * 1000

    def context_attention(
        self, op: ContextAttention, heads: Number, length: Number, batch: Number, before: Number = 0.0
    ) -> Floats:
        """`length` counts all tokens of a sequence, `before` those of them that are cached."""
        kv_heads = heads if op.kv_heads == op.heads else op.kv_heads
        new = length - before
        pairs = (length * length - before * before) / 2
        if op.window:
            pairs = np.where(np.asarray(length) > op.window, new * op.window, pairs)
        compute = 4 * batch * pairs * heads * op.head_size / flops_of(op.fmha, self.system)
        memory = (4 * heads * new + 2 * bytes_of(op.kv_cache) * kv_heads * length) * batch * op.head_size
        return np.maximum(compute, memory / self.system.memory_bandwidth) * 1000

    def generation_attention(
        self, op: GenerationAttention, heads: Number, batch: Number, length: Number
    ) -> Floats:
        """One new token for each sequence of `length`."""
        kv_heads = heads if op.kv_heads == op.heads else op.kv_heads
        seen = length - 1 if op.window == 0 else np.minimum(length - 1, op.window)
        compute = 4 * batch * heads * op.head_size * seen / self._decode_flops(op.kv_cache)
        values = 4 * heads + 2 * kv_heads * seen * bytes_of(op.kv_cache)
        return np.maximum(compute, batch * op.head_size * values / self.system.memory_bandwidth) * 1000

    def context_mla(
        self,
        op: ContextMla | MlaModule,
        heads: Number,
        length: Number,
        batch: Number,
        before: Number = 0.0,
    ) -> Floats:
        """As context attention, with keys and values written out for each head."""
        flops = flops_of(op.fmha, self.system)
        compute = batch * heads * _MLA_CONTEXT * (length * length - before * before) / flops
        values = bytes_of(op.kv_cache) * length + 2 * (length - before)
        memory = batch * heads * _MLA_CONTEXT * values / self.system.memory_bandwidth
        return np.maximum(compute, memory) * 1000

    def generation_mla(self, op: GenerationMla, heads: Number, batch: Number, length: Number) -> Floats:
        """One new token for each sequence, in the latent space."""
        compute, memory = self._generation_mla(op.kv_cache, heads, batch, length)
        return np.maximum(compute, memory)

    def mla_module(self, op: MlaModule, heads: Number, batch: Number, length: Number) -> Floats:
        """Latent attention of a decode step with the products into and out of the latent space."""
        compute, memory = self._generation_mla(op.kv_cache, heads, batch, length)
        into, out = self._mla_bmm(op.gemm, heads, batch)
        return np.maximum(compute + 2 * into, memory + 2 * out)

    def mla_bmm(self, op: MlaBmm, tokens: Number) -> Floats:
        """Batched product of 128 x 512 for each head."""
        return np.maximum(*self._mla_bmm(op.quant, op.heads, tokens))

    def moe(self, op: Moe, tokens: Number) -> Floats:
        """Routed experts of one GPU; whole-number divisions as the original has them."""
        matrices = 3 if op.gated else 2
        routed = np.rint(tokens).astype(np.int64) * op.topk
        weights = op.hidden * op.inter * matrices
        here = routed // op.moe_ep
        compute = routed * weights * 2 // op.moe_ep // op.moe_tp / flops_of(op.quant, self.system)
        values = here * op.hidden * 2 + here * op.inter * matrices // op.moe_tp
        values = values + weights // op.moe_tp * np.minimum(op.experts // op.moe_ep, here)
        memory = values * bytes_of(op.quant) / self.system.memory_bandwidth
        return np.asarray(np.maximum(compute, memory) * 1000)

    def collective(self, kind: CollectiveKind, gpus: int, elements: Number) -> Floats:
        """Each GPU sends (gpus - 1) / gpus of the message of 2-byte elements; an all-reduce does it twice."""
        passes = 2 if kind == "all_reduce" else 1
        sent: Floats = np.asarray(elements, dtype=np.float64) * (2 * passes * (gpus - 1) / gpus)
        result: Floats = sent / self.system.bandwidth(gpus) * 1000
        return result

    def extras(self, op: ContextAttention, tokens: Number, *, ideal: bool = True) -> Floats:
        """Rotary embedding, cache writes and norms around context attention.

        `tokens`: see `extra_tokens`.
        """
        query, key = op.heads * op.head_size, op.kv_heads * op.head_size
        moves = [2 * (query + key)] * 2 + [key * bytes_of(op.fmha)] * 2
        if op.qk_norm:
            moves += [2 * query] * 4 + [2 * key] * 4
        size = _EXTRAS * sum(moves) * np.asarray(tokens)
        if ideal:
            return self.transfer(size)
        return self.memory_bound(size, _EXTRAS * len(moves))

    def extra_tokens(self, op: ContextAttention, at: Query) -> Ints:
        """Return for how many tokens extras count: for one under the rules of 0.12.0, else for all of this GPU."""
        return per_gpu(at.batch * at.length, op.cp) if self._extras_per_token else np.ones((), dtype=np.int64)

    def memory_bound(self, size: Number, kernels: float = 1.0) -> Floats:
        """Bytes through the memory as kernels do it in practice: most of the bandwidth, and a fixed start."""
        rate = self.system.memory_bandwidth * self.system.memory_efficiency
        result: Floats = (np.asarray(size) / rate + kernels * self.system.memory_latency) * 1000
        return result

    def send(self, op: PointToPoint, at: Query, *, start: bool = True) -> Floats:
        """Hidden states over the link between nodes; `start` counts what it takes to begin."""
        size = op.bytes_per_token * per_gpu(at.tokens, op.token_split)
        latency = self.system.p2p_latency if start else 0.0
        return np.asarray((size / self.system.inter_node_bandwidth + latency) * 1000)

    def _context_attention(self, op: ContextAttention, at: Query) -> Floats:
        batch = at.batch.astype(np.float64)
        kernel = zigzag(
            lambda new, before: self.context_attention(op, op.heads, before + new, batch, before),
            at.length.astype(np.float64),
            at.prefix.astype(np.float64),
            op.cp,
        )
        return kernel + self.extras(op, self.extra_tokens(op, at))

    def _decode_flops(self, kv_cache: str) -> float:
        fp8 = kv_cache == "fp8" and self.system.sm_version >= _FP8_SM
        return flops_of("fp8" if fp8 else "bfloat16", self.system)

    def _generation_mla(
        self, kv_cache: str, heads: Number, batch: Number, length: Number
    ) -> tuple[Number, Number]:
        compute = 2 * batch * heads * _MLA_GENERATION * length / self._decode_flops(kv_cache)
        cached = (length - 1) * _MLA_CACHE * bytes_of(kv_cache)
        memory = batch * (heads * _MLA_GENERATION * 2 + cached) / self.system.memory_bandwidth
        return compute * 1000, memory * 1000

    def _mla_bmm(self, quant: str, heads: Number, tokens: Number) -> tuple[Number, Number]:
        compute = 2 * tokens * heads * _HEAD * _LATENT / flops_of(quant, self.system)
        values = heads * (tokens * (_HEAD + _LATENT) + _HEAD * _LATENT)
        return compute * 1000, values * bytes_of(quant) / self.system.memory_bandwidth * 1000
