"""The words of a table: which columns choose a slice, which are its axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.operations import Floats, Ints

Key: TypeAlias = tuple[str | int | float, ...]


class Layout(NamedTuple):
    """The columns of an operation's table."""

    key: tuple[str, ...]  # choose one slice, which is loaded by itself
    axes: tuple[str, ...]  # whole numbers; rows are sorted by them, from the first to the last


# kv_heads is 0 where it equals heads (MHA). lane: the kernel source, or "default" (all sources; the first row wins).
LAYOUTS: dict[str, Layout] = {
    "gemm": Layout(("quant",), ("n", "k", "m")),
    # in which order sizes were measured: places from 1 instead of latencies
    "gemm_order": Layout(("quant",), ("n", "k")),
    "context_attention": Layout(
        ("lane", "fmha", "kv_cache", "kv_heads", "head_size", "window"), ("heads", "length", "batch")
    ),
    "generation_attention": Layout(
        ("lane", "kv_cache", "kv_heads", "head_size", "window"), ("heads", "batch", "length")
    ),
    "context_mla": Layout(("fmha", "kv_cache"), ("heads", "length", "batch")),
    "generation_mla": Layout(("kv_cache",), ("heads", "batch", "length")),
    "mla_bmm": Layout(("quant", "stage"), ("heads", "tokens")),
    "mla_context_module": Layout(("fmha", "kv_cache", "gemm", "native_heads"), ("heads", "length", "batch")),
    "mla_generation_module": Layout(("kv_cache", "gemm", "native_heads"), ("heads", "batch", "length")),
    # lane: "default", or "min_latency" for the kernels that are used for few tokens
    "moe": Layout(
        ("lane", "quant", "distribution"),
        ("topk", "experts", "hidden", "inter", "moe_tp", "moe_ep", "tokens"),
    ),
    "custom_allreduce": Layout((), ("gpus", "elements")),
    "nccl": Layout(("kind",), ("gpus", "elements")),
    "compute_scale": Layout(("quant",), ("m", "k")),
    "scale_matrix": Layout(("quant",), ("m", "k")),
    "encoder_attention": Layout(("fmha", "head_size"), ("heads", "length", "batch")),
    # sparse attention blocks, projections and all. lane: "full", or "skip" for layers without an indexer
    "dsa_context_module": Layout(
        ("lane", "fmha", "kv_cache", "gemm", "architecture"), ("heads", "prefix", "length", "batch")
    ),
    "dsa_generation_module": Layout(
        ("lane", "kv_cache", "gemm", "architecture"), ("heads", "batch", "length")
    ),
    "dsv4_context_module": Layout(
        ("fmha", "kv_cache", "gemm", "native_heads", "compress_ratio"), ("heads", "prefix", "length", "batch")
    ),
    "dsv4_generation_module": Layout(
        ("kv_cache", "gemm", "native_heads", "compress_ratio"), ("heads", "batch", "length")
    ),
    "msa_context_module": Layout(
        ("fmha", "kv_cache", "gemm", "architecture"), ("heads", "prefix", "length", "batch")
    ),
    "msa_generation_module": Layout(("kv_cache", "gemm", "architecture"), ("heads", "batch", "length")),
    "wideep_context_mla": Layout(("lane", "fmha", "kv_cache"), ("heads", "length", "batch")),
    "wideep_generation_mla": Layout(("lane", "kv_cache"), ("heads", "batch", "length")),
    # linear attention, state-space and hyper-connection pieces; length is 1 in the generation phase
    "mamba2": Layout(
        ("kernel", "phase", "d_model", "d_state", "d_conv", "heads", "head_size", "groups", "chunk"),
        ("batch", "length"),
    ),
    "gdn": Layout(
        ("kernel", "phase", "d_model", "k_heads", "k_size", "v_heads", "v_size", "d_conv"),
        ("batch", "length"),
    ),
    "kda": Layout(
        ("kernel", "phase", "d_model", "k_heads", "k_size", "v_heads", "v_size", "d_conv"),
        ("batch", "length"),
    ),
    "mhc": Layout(("stage", "hc_mult", "hidden"), ("tokens",)),
    # wide expert parallelism. kernel: who moves the tokens, e.g. deepep_ll; stage: dispatch, combine, prepare
    "moe_a2a": Layout(
        ("kernel", "stage", "format"), ("gpus", "nodes", "hidden", "topk", "experts", "sms", "tokens")
    ),
    "moe_ep": Layout(
        ("kernel", "quant", "distribution", "phase"),
        ("topk", "experts", "slots", "hidden", "inter", "moe_tp", "moe_ep", "tokens"),
    ),
}


class Slice(NamedTuple):
    """Rows of one key, sorted by the axes; no two rows share all of them."""

    axes: tuple[Ints, ...]  # each (rows,)
    latency: Floats  # (rows,), ms


class Tables(Protocol):
    """The measured tables of one system, backend and version."""

    system: str
    backend: str
    version: str
    lossless: bool

    def keys(self, operation: str) -> Sequence[Key]:
        """Return the keys of an operation's slices, from the index alone; none if it is not there."""

    def load(self, operation: str, key: Key) -> Slice | None:
        """Return a slice, or None if it is not there. Slices are read once."""
