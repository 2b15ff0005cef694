"""What one GPU keeps of a model: weights and KV cache, in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.models.formats import bytes_of
from aegis.planner.models.graph import KvGroup
from aegis.planner.operations import Fallback, Gemm, Moe, Overlap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis.planner.estimator import Rules
    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.operations import Operation
    from aegis.planner.problem import Parallel, Quantization

# Families whose embedding is on every GPU as a whole.
WHOLE_EMBEDDING = frozenset(
    {"GPT", "DEEPSEEK", "KIMIK25", "DEEPSEEKV32", "HYBRIDMOE", "GEMMA4MIX", "NEMOTRONNAS", "NEMOTRONH"}
)
HALF = 2  # bytes
# The cache of an indexer: fp8, with a scale for each block of values.
INDEX_BLOCK, INDEX_SCALE = 128, 4
STATE_BYTES = {"float32": 4, "bfloat16": HALF, "float16": HALF}  # of a delta net


def weights_of(operations: Iterable[Operation], rules: Rules) -> float:
    """Return the bytes of the weights that operations hold, embeddings and what is measured as a whole left out."""
    return sum(_weights(each, rules) for each in operations)


def embedding_weights(model: ModelShape, split: Parallel, rules: Rules) -> float:
    """Return the bytes of the embedding on one GPU."""
    whole = rules == "guide" or model.family in WHOLE_EMBEDDING
    return float((model.vocab if whole else model.vocab // split.tp) * model.hidden * HALF)


def kv_groups(
    model: ModelShape, split: Parallel, quantization: Quantization, rules: Rules
) -> tuple[KvGroup, ...]:
    """Return the KV cache of one token, by layers that are alike. Latent caches are not divided by tp."""
    width = bytes_of(quantization.kv_cache, rules)
    if model.mla is not None:
        groups = [KvGroup(_latent_bytes(model, width) * model.layers)]
    elif model.family == "GEMMA4MIX":
        groups = _hybrid_groups(model, split.tp, width)
    elif model.family == "QWEN35":
        per_layer = _per_layer(model.kv_heads, model.head_size, split.tp, width)
        # What a delta net keeps does not grow: it is there from the first token on.
        groups = [KvGroup(per_layer * model.count("full")), KvGroup(_state_bytes(model, split.tp), 1)]
    elif model.blocks:
        heads = (
            each.count * -(-(model.heads // each.heads_per_group) // split.tp)
            for each in model.blocks
            if each.heads_per_group
        )
        groups = [KvGroup(2 * model.head_size * width * sum(heads))]
    else:
        groups = _plain_groups(model, split.tp, width, rules)
    return tuple(group for group in groups if group.bytes_per_token)


def _plain_groups(model: ModelShape, tp: int, width: float, rules: Rules) -> list[KvGroup]:
    per_layer = _per_layer(model.kv_heads, model.head_size, tp, width)
    window, windowed = model.window, 0
    if window is not None and model.family in ("LLAMA", "MOE") and rules == "current":
        windowed = model.count("window") if model.kinds else model.layers
    return [
        KvGroup(per_layer * windowed, window.size if window is not None else None),
        KvGroup(per_layer * (model.layers - windowed)),
    ]


def _hybrid_groups(model: ModelShape, tp: int, width: float) -> list[KvGroup]:
    """Return keys and values of windowed and of full layers, which have heads of other sizes."""
    full = model.full
    kv_heads, size = (full.kv_heads, full.head_size) if full is not None else (0, 0)
    windowed = _per_layer(model.kv_heads, model.head_size, tp, width)
    whole = _per_layer(kv_heads or model.kv_heads, size or model.head_size, tp, width)
    return [
        KvGroup(windowed * model.count("window"), model.window.size if model.window is not None else None),
        KvGroup(whole * model.count("full")),
    ]


def _per_layer(kv_heads: int, head_size: int, tp: int, width: float) -> float:
    return 2 * -(-kv_heads // tp) * head_size * width


def _latent_bytes(model: ModelShape, width: float) -> float:
    """Return the bytes of one layer: the latent vector, and what an indexer keeps (fp8, scales of 4 bytes)."""
    if model.mla is None:
        return 0.0
    if model.indexer is None:
        return (model.mla.kv_rank + model.mla.rope_size) * width
    size = model.indexer.head_size
    index = size + -(-size // INDEX_BLOCK) * INDEX_SCALE
    return model.mla.kv_rank * width + model.mla.rope_size * HALF + index


def _state_bytes(model: ModelShape, tp: int) -> float:
    """Return what the delta nets keep of a sequence: their state, and the last inputs of the convolutions."""
    net = model.delta_net
    if net is None:
        return 0.0
    state = net.value_heads // tp * net.key_size * net.value_size * STATE_BYTES.get(net.state_type, 4)
    inputs = (2 * net.key_heads * net.key_size + net.value_heads * net.value_size) // tp
    return float(model.count("linear") * (state + inputs * (net.conv - 1) * HALF))


def _weights(operation: Operation, rules: Rules) -> float:
    match operation:
        case Gemm():
            return operation.count * (operation.n * operation.k * bytes_of(operation.quant, rules))
        case Moe():
            matrices = 3 if operation.gated else 2
            values = operation.hidden * operation.inter * operation.experts
            stored = values * bytes_of(operation.quant, rules) * matrices
            return operation.count * (stored // operation.moe_ep // operation.moe_tp)
        case Fallback():
            return weights_of(operation.otherwise, rules)
        case Overlap():
            return weights_of((*operation.first, *operation.second), rules)
    return 0.0
