"""What one GPU of a worker keeps in memory, and what an engine lets its KV cache take (planner-model, section 7)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from aegis.planner.models.graph import Graph
    from aegis.planner.operations import Floats
    from aegis.planner.problem import Backend, Parallel
    from aegis.planner.systems import System

    Bools: TypeAlias = NDArray[np.bool_]

GIB = 2**30
MIB = 2**20

# Widths of the residual stream that are alive at once, by the tensor split: measured by the engines' makers.
_TRTLLM: dict[str, dict[int, float]] = {
    "GPT": {1: 10, 2: 6, 4: 5, 8: 5},
    "LLAMA": {1: 11, 2: 6.5, 4: 5, 8: 5},
    "MOE": {1: 22, 2: 13, 4: 10, 8: 10},
}
_SGLANG: dict[str, dict[int, float]] = {
    "GPT": {1: 13, 2: 8, 4: 6.5, 8: 6.5},
    "LLAMA": {1: 14, 2: 8.5, 4: 6.5, 8: 6.5},
    "MOE": {1: 28, 2: 17, 4: 13, 8: 13},
}
_COEFFICIENTS = {"trtllm": _TRTLLM, "vllm": _TRTLLM, "sglang": _SGLANG}
# Families whose dispatch of tokens to experts keeps block scales: one float for 128 values.
_HIDDEN_WIDE = frozenset({"GEMMA4MIX", "STEP3P7"})
_WITH_WORKSPACE = _HIDDEN_WIDE | {"DEEPSEEK", "DEEPSEEKV32", "DEEPSEEKV4", "KIMIK25"}
_WITH_EXPERTS = _WITH_WORKSPACE | {"MOE"}
_SCALE_BLOCK, _SCALE_BYTES = 128, 4

# Of the KV cache's share: fragmentation, and what TensorRT-LLM holds back.
_TOLERANCE = 0.98
_TRTLLM_UNRESERVED = 0.985
_TRTLLM_FRACTION = 0.9
_VLLM_FRACTION, _VLLM_OLD_FRACTION, _VLLM_OLD = 0.92, 0.9, ("0.14", "0.19")
_SGLANG_FRACTION = 0.88
# SGLang's own, by GiB of the GPU: tokens of a chunk of prefill, largest batch with a CUDA graph (tensor split < 4, >= 4)
_SGLANG_SIZES = (
    (20, 2048, 8, 8),
    (35, 2048, 24, 80),
    (60, 4096, 32, 160),
    (160, 8192, 256, 512),
    (math.inf, 16384, 512, 512),
)


class Memory(NamedTuple):
    """GiB of one GPU, by what takes them; arrays that broadcast."""

    weights: Floats
    activations: Floats
    kv_cache: Floats
    nccl: Floats
    other: Floats

    @property
    def total(self) -> Floats:
        """GiB in all."""
        return self.weights + self.activations + self.kv_cache + self.nccl + self.other

    @property
    def besides_cache(self) -> Floats:
        """GiB without the KV cache."""
        return self.total - self.kv_cache


class Usage(NamedTuple):
    """What the engine holds at its peak; arrays that broadcast."""

    sequences: ArrayLike
    length: ArrayLike  # tokens of a sequence that the KV cache has room for
    tokens: ArrayLike  # that pass through the layers in one step
    drafting: ArrayLike = 0  # of these tokens: those that every drafted token adds one to


class Place(NamedTuple):
    """Where a worker runs."""

    system: System
    backend: Backend
    version: str
    guide: bool  # the rules of the guide's time


def memory(graph: Graph, split: Parallel, place: Place, usage: Usage, drafted: int) -> Memory:
    """Return what one GPU holds, in arrays of the shape that `usage` broadcasts to."""
    sglang = place.backend == "sglang"
    misc = _of_tensor_split(place.system.nccl_memory, split.tp)
    cache = np.asarray(usage.sequences) * kv_bytes(graph, usage.length)
    other = place.system.other_memory * (1.2 if sglang else 1.0)
    parts = (graph.weights, _activations(graph, split, place, usage, drafted), cache, misc, other)
    return Memory(*(np.asarray(part, dtype=np.float64) / GIB for part in parts))


def kv_bytes(graph: Graph, length: ArrayLike) -> Floats:
    """Return bytes of KV cache that one GPU holds of a sequence of so many tokens, all pipeline stages together."""
    tokens = np.asarray(length, dtype=np.float64)
    total = np.zeros(tokens.shape)
    for group in graph.kv_groups:
        kept = tokens if group.window is None else np.minimum(tokens, group.window)
        total = total + group.bytes_per_token * kept
    return total


def fits(used: Memory, split: Parallel, place: Place, *, fraction: float | None, aggregated: bool) -> Bools:
    """Tell where the memory of a GPU suffices, and the KV cache stays within what the engine gives it.

    `fraction` replaces the engine's own: of the memory that is left (TensorRT-LLM) or of all of it (vLLM, SGLang).
    """
    capacity = place.system.memory_capacity / GIB
    within: Bools = used.total < capacity
    if place.guide and fraction is None:
        return within
    return within & (
        used.kv_cache <= cache_budget(used, split, place, fraction=fraction, aggregated=aggregated)
    )


def cache_budget(
    used: Memory, split: Parallel, place: Place, *, fraction: float | None, aggregated: bool
) -> Floats:
    """Return GiB that the engine gives its KV cache."""
    capacity = place.system.memory_capacity / GIB
    if place.backend == "trtllm":
        share = (fraction or _TRTLLM_FRACTION) * _TRTLLM_UNRESERVED * _TOLERANCE
        return (capacity - used.besides_cache) * share
    if place.backend == "vllm":
        default = _VLLM_OLD_FRACTION if place.version.startswith(_VLLM_OLD) else _VLLM_FRACTION
    else:
        default = _SGLANG_FRACTION if aggregated else static_fraction(place.system.memory_capacity, split)
    return capacity * (fraction or default) * _TOLERANCE - used.besides_cache


def static_fraction(capacity: int, split: Parallel) -> float:
    """Return the share of memory (bytes) that SGLang takes for weights and cache unless told.

    Source: SGLang 0.5.16, `ServerArgs._handle_gpu_memory_settings`: it keeps back room for the activations of one
    chunk of prefill, for CUDA graphs, and for the padding of attention data parallelism.
    """
    there = capacity / MIB
    chunk, narrow, wide = next(sizes for limit, *sizes in _SGLANG_SIZES if there < limit * 1024)
    graphs = wide if split.tp >= 4 else narrow  # noqa: PLR2004 - as SGLang says
    reserved = 512 + 1.5 * chunk + split.tp * split.pp / 8 * 1024 + 2 * graphs
    if split.dp > 1:
        reserved += graphs * split.dp * (3 + (1.5 if graphs > 300 else 0))  # noqa: PLR2004 - as SGLang says
    if there > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    return round((there - reserved) / there, 3)


def shortage(used: Memory, place: Place) -> str:
    """Return bytes needed against bytes there, in words, for one point."""
    parts = {
        "weights": used.weights,
        "KV cache": used.kv_cache,
        "activations": used.activations,
        "communication": used.nccl,
        "runtime": used.other,
    }
    listed = " + ".join(f"{name} {float(value):.1f}" for name, value in parts.items() if float(value) > 0)
    there = place.system.memory_capacity / GIB
    return f"{listed} = {float(used.total):.1f} GiB of one {place.system.name} GPU, which has {there:.1f} GiB"


def _activations(graph: Graph, split: Parallel, place: Place, usage: Usage, drafted: int) -> Floats:
    """Return bytes of the tensors between operations, at least what an idle engine takes."""
    sglang = place.backend == "sglang"
    tokens = np.asarray(usage.tokens, dtype=np.float64)
    size = 2 * tokens * graph.attention_width * _coefficient(graph.family, split.tp, place.backend)
    if graph.family in _WITH_WORKSPACE and graph.experts:
        hidden = sglang or graph.family in _HIDDEN_WIDE
        width = graph.hidden if hidden else graph.attention_width
        routed = graph.experts * graph.topk / split.moe_ep
        size = size + tokens * width * split.dp * routed / _SCALE_BLOCK * _SCALE_BYTES
    least = (90 if sglang else 70) * MIB
    grown = 1 + drafted * np.asarray(usage.drafting) / np.maximum(tokens, 1)
    size = np.maximum(size * grown, least) if place.guide else np.maximum(size, least) * grown
    return size * (1.15 if sglang else 1.0)


def _coefficient(family: str, tp: int, backend: Backend) -> float:
    kind = "MOE" if family in _WITH_EXPERTS else family
    table = _COEFFICIENTS[backend]
    return _of_tensor_split(table.get(kind, table["GPT"]), tp)


def _of_tensor_split(table: dict[int, float] | dict[int, int], tp: int) -> float:
    """Return the value of the largest split in the table that is not larger than this one."""
    return table[max((size for size in table if size <= tp), default=min(table))]
