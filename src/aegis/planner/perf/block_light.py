"""The speed of light of blocks that are measured as one piece: state spaces, linear and sparse attention.

Formulas of aiconfigurator 0.12.0 (Apache-2.0), in ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aegis.planner.models.formats import bytes_of, flops_of

if TYPE_CHECKING:
    from aegis.planner.operations import Floats
    from aegis.planner.perf.sol import Number
    from aegis.planner.systems import System

_CONVOLUTIONS = ("causal_conv1d_fn", "causal_conv1d_update")
_CHUNK = 64  # tokens between two kept states of chunked linear attention
_LENGTHWISE = "chunk_gated_delta_rule"
_RECURRENT = "fused_sigmoid_gating_delta_rule_update"


def mamba2(system: System, sizes: dict[str, int], kernel: str, tokens: Number) -> Floats:
    """Return a Mamba2 kernel over some tokens: memory alone. `sizes` as the columns of its table."""
    inner = sizes["heads"] * sizes["head_size"]
    state = sizes["groups"] * sizes["d_state"]
    if kernel in _CONVOLUTIONS:
        moved = _convolution(inner + 2 * state, sizes["d_conv"])
    else:
        moved = 2 * (inner + 2 * state + sizes["heads"]) + 2 * inner
    return np.asarray(tokens * (moved / system.memory_bandwidth * 1000))


def gated_delta(
    system: System, sizes: dict[str, int], kernel: str, batch: Number, lengths: tuple[Number, Number]
) -> Floats:
    """Return a gated-delta-rule kernel: memory alone. `lengths`: tokens of a sequence, and those seen (for chunks)."""
    new, chunked = lengths
    keys, values = sizes["k_heads"] * sizes["k_size"], sizes["v_heads"] * sizes["v_size"]
    tokens = batch * new
    if kernel in _CONVOLUTIONS:
        moved = tokens * _convolution(2 * keys + values, sizes["d_conv"])
    elif kernel in {_LENGTHWISE, _RECURRENT}:
        state = values * sizes["k_size"]
        kept = 2 * state * batch * (chunked // _CHUNK) if kernel == _LENGTHWISE else 0
        moved = tokens * 4 * (keys + values) + 2 * (4 * state * batch + kept)
    else:
        moved = tokens * 4 * sizes["d_model"]
    return np.asarray(moved / system.memory_bandwidth * 1000)


class Sparse(NamedTuple):
    """Sizes of an attention block that chooses its tokens with an indexer."""

    hidden: int
    q_rank: int
    nope: int
    value: int
    index_heads: int
    kv_rank: int = 512
    rope: int = 64
    index_size: int = 128
    chosen: int = 2048  # tokens that attention sees


SPARSE = {
    "DeepseekV32ForCausalLM": Sparse(7168, 1536, 128, 128, 64),
    "GlmMoeDsaForCausalLM": Sparse(6144, 2048, 192, 256, 32),
}


class SparseFormats(NamedTuple):
    """Number formats of such a block."""

    gemm: str
    kv_cache: str
    fmha: str = "bfloat16"


def sparse_context(
    system: System,
    sizes: Sparse,
    formats: SparseFormats,
    at: tuple[Number, Number, Number, Number],
    *,
    indexer: bool = True,
) -> Floats:
    """Return a prefill block at (heads, prefix, new tokens, batch)."""
    heads, before, new, batch = (np.asarray(each, dtype=np.float64) for each in at)
    length, tokens, top = before + new, batch * new, sizes.chosen
    searched = np.where(length > top, length, 0) if indexer else np.zeros(())
    dense = (length * (length + 1) - before * (before + 1)) / 2
    ramp = (top * (top + 1) - before * (before + 1)) / 2 + (length - top) * top
    pairs = batch * np.where(length <= top, dense, np.where(before >= top, new * top, ramp))
    qk_size = sizes.nope + sizes.rope
    seen = batch * heads * np.minimum(length, top) * (sizes.kv_rank + sizes.rope)
    memory = (
        _sparse_weights(sizes, heads) * bytes_of(formats.gemm)
        + seen * bytes_of(formats.kv_cache)
        + batch * searched * _index_entry(sizes)
        + 2 * tokens * heads * qk_size * bytes_of(formats.fmha)
    )
    return _sparse(system, sizes, formats, (heads, tokens, tokens * searched, pairs), memory)


def sparse_generation(
    system: System, sizes: Sparse, formats: SparseFormats, at: tuple[Number, Number, Number]
) -> Floats:
    """Return a decode block at (heads, batch, length)."""
    heads, batch, length = (np.asarray(each, dtype=np.float64) for each in at)
    seen = batch * np.minimum(length, sizes.chosen)
    memory = (
        _sparse_weights(sizes, heads) * bytes_of(formats.gemm)
        + batch * length * _index_entry(sizes)
        + seen * (sizes.kv_rank + sizes.rope) * bytes_of(formats.kv_cache)
    )
    return _sparse(system, sizes, formats, (heads, batch, batch * length, seen), memory)


def _sparse(
    system: System,
    sizes: Sparse,
    formats: SparseFormats,
    work: tuple[Floats, Floats, Floats, Floats],
    memory: Floats,
) -> Floats:
    """Add up projections, search and attention over (heads, tokens, searched pairs, attended pairs)."""
    heads, tokens, searched, pairs = work
    absorbed = heads * sizes.kv_rank * (sizes.nope + sizes.value)
    projections = 2 * tokens * (_sparse_weights(sizes, heads) + absorbed)
    search = 2 * searched * sizes.index_heads * sizes.index_size
    attention = 2 * heads * (2 * sizes.kv_rank + sizes.rope) * pairs
    compute = (
        projections / flops_of(formats.gemm, system)
        + search / flops_of("fp8", system)
        + attention / flops_of(formats.fmha, system)
    )
    return np.asarray(np.maximum(compute, memory / system.memory_bandwidth) * 1000)


def _sparse_weights(sizes: Sparse, heads: Floats) -> Floats:
    down = sizes.q_rank + sizes.kv_rank + sizes.rope + sizes.index_size
    up = heads * (sizes.nope + sizes.rope) + sizes.index_heads * sizes.index_size
    return np.asarray(
        sizes.hidden * (down + sizes.index_heads) + sizes.q_rank * up + heads * sizes.value * sizes.hidden
    )


def _index_entry(sizes: Sparse) -> int:
    """Bytes of one indexer key in the cache: fp8, and a scale for each 128."""
    return sizes.index_size + -(-sizes.index_size // 128) * 4


def _convolution(channels: int, width: int) -> int:
    return channels * (width + 1) * 2 + channels * 2
