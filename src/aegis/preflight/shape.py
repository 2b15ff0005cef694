"""What a model's config.json says of its size. Total: anything may stand there, and what is strange is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

Config: TypeAlias = "Mapping[str, Any]"

# Where the language part of a model of several parts stands (Hugging Face: text_config; InternVL: llm_config;
# DeepSeek-VL2: language_config; Qwen-Omni: thinker_config with a text_config in it).
PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
DEEPEST = 4
SANE = 10**9
MOST_HEADS = 4096  # sizes up to it are tried one by one

# The names that vLLM 0.32 looks for (vllm/transformers_utils/model_arch_config_convertor.py), in its order.
KV_HEADS = (
    "n_head_kv",
    "num_kv_heads",
    "num_key_value_heads",
    "multi_query_group_num",
    "num_attention_groups",
)
EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
HEADS = ("num_attention_heads", "n_head", "n_heads")  # GPT-2, MPT: transformers maps them to the first
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# Types whose every layer keeps keys and values of the whole context, unless a window or other layer types are named.
UNIFORM = frozenset(
    {
        *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "granite", "granitemoe"),
        *("phi3", "olmo", "olmo2", "olmoe", "internlm2", "deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe"),
    }
)


class Shape(Struct, frozen=True, kw_only=True):
    """What is known of a model; None: not known."""

    heads: int | None = None
    kv_heads: int | None = None  # None as well where attention is latent (MLA): nothing is split by them
    layers: int | None = None
    experts: int = 0
    context: int | None = None  # tokens
    scaling: float = 1.0  # of positions: the context may be longer by this
    kv_values: int | None = None  # of one token in one layer of a KV head; or of all heads where it is latent
    latent: bool = False
    uniform: bool = False  # every layer keeps the whole context
    dtype: str | None = None  # float32, bfloat16
    quantized: bool = False
    small_cache: bool = False  # the checkpoint asks for a KV cache of 8 bits


def parse_config(content: bytes) -> Shape | None:
    """Return what a config.json says, or None if it is no JSON object."""
    try:
        config = msgspec.json.decode(content)
        return shape_of(config) if isinstance(config, dict) else None
    except (msgspec.DecodeError, RecursionError):
        return None


def shape_of(config: Config) -> Shape:
    """Return what a configuration says of its language part."""
    text = _language_part(config)
    heads = _count(text, *HEADS, most=MOST_HEADS)
    rank, rope = _count(text, "kv_lora_rank"), _count(text, "qk_rope_head_dim")
    head_size = _count(text, "head_dim") or _quotient(_count(text, "hidden_size"), heads)
    quantization = next((each for each in map(_quantization, (config, text)) if each), None)
    return Shape(
        heads=heads,
        kv_heads=None if rank else _count(text, *KV_HEADS, most=MOST_HEADS) or heads,
        layers=_count(text, *LAYERS),
        experts=_count(text, *EXPERTS) or 0,
        context=_context(text),
        scaling=_scaling(text),
        kv_values=rank + (rope or 0) if rank else head_size and 2 * head_size,
        latent=rank is not None,
        uniform=_is_uniform(text),
        dtype=_text(text, "dtype", "torch_dtype") or _text(config, "dtype", "torch_dtype"),
        quantized=quantization is not None,
        small_cache="kv_cache" in str(quantization),
    )


def _language_part(config: Config) -> Config:
    for _ in range(DEEPEST):
        inner = next((config[name] for name in PARTS if isinstance(config.get(name), dict)), None)
        if inner is None:
            break
        config = inner
    return config


def _count(config: Config, *names: str, most: int = SANE) -> int | None:
    """Return the first of these that is there, if it is a number that can be meant; Ernie lists one per layer."""
    value = next((config[name] for name in names if config.get(name) is not None), None)
    if isinstance(value, list):
        value = value[0] if value and all(each == value[0] for each in value) else None
    sane = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most
    return value if sane else None


def _text(config: Config, *names: str) -> str | None:
    value = next((config[name] for name in names if isinstance(config.get(name), str)), None)
    return value.removeprefix("torch.") if value else None


def _quotient(total: int | None, parts: int | None) -> int | None:
    return total // parts if total and parts and total >= parts else None


def _quantization(config: Config) -> dict[str, Any] | None:
    found = config.get("quantization_config") or config.get("compression_config")
    return found if isinstance(found, dict) else None


def _context(text: Config) -> int | None:
    """Return the longest context as vLLM reads it: the smallest of LENGTHS; `model_max_length` goes before them."""
    lengths = [length for length in (_count(text, name) for name in LENGTHS) if length]
    return _count(text, "model_max_length") or min(lengths, default=None)


def _scaling(text: Config) -> float:
    """Return the largest factor: whether a length includes it already differs between kinds of scaling and releases."""
    factors = [1.0]
    for name in ("rope_scaling", "rope_parameters"):
        found = text.get(name)
        if isinstance(found, dict):
            factors += [_factor(each) for each in (found, *found.values()) if isinstance(each, dict)]
    return max(factors)


def _factor(scaling: Config) -> float:
    if scaling.get("rope_type", scaling.get("type")) == "llama3":  # its length is what the factor led to
        return 1.0
    factor = scaling.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        return 1.0
    return float(factor) if 1 <= factor < SANE else 1.0


def _is_uniform(text: Config) -> bool:
    kinds = text.get("layer_types")
    same = kinds is None or (isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds))
    window = text.get("sliding_window") is not None and text.get("use_sliding_window") is not False
    return _text(text, "model_type") in UNIFORM and same and not window
