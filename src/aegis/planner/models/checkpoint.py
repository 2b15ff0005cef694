"""Read from a config.json in which number formats its weights are stored, and what the checkpoint asks of the KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from aegis.errors import ConfigError
from aegis.planner.models.fields import shown
from aegis.planner.models.shapes import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Json: TypeAlias = "Mapping[str, Any]"

# Quantized by bits: AWQ, GPTQ and bitsandbytes store whole numbers and compute in bfloat16.
BY_BITS = {4: "int4_wo", 8: "int8_wo"}
BY_BITS_METHODS = frozenset({"awq", "gptq", "bitsandbytes", "auto_round", "gptq_marlin", "awq_marlin"})
# Module names that stand for a part (attention projections, what chooses tokens, shared experts).
PROJECTIONS = {
    "q": ("q_a_proj", "q_b_proj", "q_proj"),
    "kv": ("kv_a_proj", "kv_b_proj", "kv_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "indexer": ("indexer",),
}
ALL_PROJECTIONS = frozenset(PROJECTIONS)
LAYER_FORMATS = {"fp8": "fp8_static", "mxfp8": "fp8", "nvfp4": "nvfp4", "w4a16_nvfp4": "w4a16_nvfp4"}
CACHES = {
    **dict.fromkeys(("fp8", "e4m3", "e5m2", "fp8_e4m3", "fp8_e5m2"), "fp8"),
    **dict.fromkeys(("fp16", "float16", "bf16", "bfloat16", "auto", "none"), "bfloat16"),
    "int8": "int8",
}


def read_checkpoint(config: Json, where: str, *, language: Json) -> Checkpoint:
    """Return the formats of a checkpoint: quantization_config (of the model or its language part), hf_quant_config.

    Raises:
        ConfigError: a way to quantize that is not known.
    """
    beside = _object(_object(config, "hf_quant_config"), "quantization")
    own = _object(config, "quantization_config") or _object(language, "quantization_config")
    if not beside and not own:
        return Checkpoint()
    named = next((each for each in _algorithms(beside, own) if isinstance(each, str) and each), None)
    algorithm = _algorithm(named, own)
    gemm, moe = _formats(algorithm, where, own=own, beside=beside)
    sizes = own.get("weight_block_size")
    block = sizes[0] if isinstance(sizes, list) and sizes and type(sizes[0]) is int and sizes[0] > 0 else 128
    return Checkpoint(
        algorithm=algorithm,
        gemm=gemm,
        moe=moe,
        kv_cache=_kv_cache(beside, own),
        dynamic=_dynamic(own),
        parts=tuple(sorted(_parts(beside, own).items())),
        block=block,
    )


def _algorithms(beside: Json, own: Json) -> Iterator[object]:
    yield beside.get("quant_algo")
    for key in ("quant_algo", "quant_method", "quantization_method"):
        yield own.get(key)


def _algorithm(named: str | None, own: Json) -> str | None:
    name = (named or "").strip().lower().replace("-", "_")
    name = {
        "mixedprecision": "mixed_precision",
        "w4a16_mxfp4": "mxfp4",
        "fbgemm_fp8": "fp8",
        "w4a16_awq": "awq",
    }.get(name, name)
    return "fp8_block" if name == "fp8" and own.get("weight_block_size") else name or None


def _formats(algorithm: str | None, where: str, *, own: Json, beside: Json) -> tuple[str, str]:
    """Return the formats of dense and of expert weights."""
    per_tensor = "fp8" if _dynamic(own) else "fp8_static"
    if algorithm in BY_BITS_METHODS:
        whole = BY_BITS[_bits(own, where)]
        return whole, whole
    if algorithm == "compressed_tensors":
        return _compressed_tensors(own)
    if algorithm == "mixed_precision":
        return _mixed_precision(own, beside, per_tensor)
    whole_formats: dict[str | None, tuple[str, str]] = {
        None: ("bfloat16", "bfloat16"),
        "fp8": (per_tensor, "fp8"),
        "fp8_block": ("fp8_block", "fp8_block"),
        "nvfp4": ("nvfp4", "nvfp4"),
        "mxfp4": ("bfloat16", "w4a16_mxfp4"),
    }
    if algorithm in whole_formats:
        return whole_formats[algorithm]
    raise ConfigError(
        f"{where}: `quantization_config` says {shown(algorithm)}, a way to quantize that is not known",
        hint="known: fp8 (also by blocks), nvfp4, mxfp4, awq, gptq, bitsandbytes, compressed-tensors, mixed_precision",
    )


def _bits(own: Json, where: str) -> int:
    if own.get("load_in_8bit") is True:
        return 8
    bits = own.get("bits", own.get("w_bit", 4))
    if isinstance(bits, bool) or bits not in BY_BITS:
        raise ConfigError(f"{where}: `quantization_config.bits` is {shown(bits)}", hint="known: 4 and 8")
    return int(bits)


def _compressed_tensors(own: Json) -> tuple[str, str]:
    """Return the formats of the first group that says one, for the parts that it is not kept from."""
    base = next((each for each in map(_group_format, _groups(own)) if each), None)
    if base is None:
        return "bfloat16", "bfloat16"
    patterns = [each.lower() for each in _patterns(own)]
    attention = any(
        word in each for each in patterns for word in ("self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
    )
    experts = any("expert" in each and "shared_expert" not in each for each in patterns)
    return "bfloat16" if attention else base, "bfloat16" if experts else base


def _group_format(group: Json) -> str | None:
    weights = _object(group, "weights")
    bits, kind = weights.get("num_bits"), str(weights.get("type", "")).lower()
    if "int" in kind:
        return BY_BITS.get(bits) if isinstance(bits, int) else None
    if "float" not in kind:
        return None
    if bits == 4:  # noqa: PLR2004 - bits
        return "w4a16_mxfp4"
    if bits != 8:  # noqa: PLR2004 - bits
        return None
    return "fp8_block" if weights.get("strategy") == "block" or weights.get("block_structure") else "fp8"


def _mixed_precision(own: Json, beside: Json, per_tensor: str) -> tuple[str, str]:
    """Return one format for dense and one for expert weights, where each layer says its own."""
    dense, experts = set[str](), set[str]()
    for target, named in _targets(own, beside):
        (experts if _is_routed(target) else dense).add(named)
    method = str(own.get("quant_method", "")).lower()
    if method == "fp8":  # the checkpoint that the experts were requantized from
        gemm = "fp8_block" if own.get("weight_block_size") else per_tensor
    else:
        gemm = _first(dense, mxfp8="fp8_block", fp8=per_tensor, w4a16_nvfp4="w4a16_nvfp4", nvfp4="nvfp4")
    return gemm, _first(experts, w4a16_nvfp4="w4a16_nvfp4", nvfp4="nvfp4", mxfp8="fp8_block", fp8="fp8")


def _first(found: set[str], **formats: str) -> str:
    return next((each for name, each in formats.items() if name in found), "bfloat16")


def _said_of_layers(own: Json, beside: Json) -> Iterator[tuple[str, str]]:
    for section in (beside, own):
        for target, said in _object(section, "quantized_layers").items():
            named = said.get("quant_algo") if isinstance(said, dict) else said
            yield str(target), str(named).lower()


def _targets(own: Json, beside: Json) -> Iterator[tuple[str, str]]:
    yield from _said_of_layers(own, beside)
    for group in _groups(own):
        weights = _object(group, "weights")
        bits, kind = weights.get("num_bits"), str(weights.get("type", "")).lower()
        if "float" not in kind or bits not in (4, 8):
            continue
        eight = "mxfp8" if weights.get("group_size") == 32 else "fp8"  # noqa: PLR2004 - the block of MX formats
        for target in _list(group, "targets"):
            yield str(target), "nvfp4" if bits == 4 else eight  # noqa: PLR2004 - bits


def _is_routed(target: str) -> bool:
    target = target.lower()
    return "shared_expert" not in target and (".experts." in target or target.endswith(".experts"))


def _parts(beside: Json, own: Json) -> dict[str, str]:
    """Return the parts that are kept in bfloat16, and those whose layers say their format themselves."""
    kept = set[str]()
    for pattern in (*_patterns(own), *_patterns(beside)):
        parts = {part for part, marks in PROJECTIONS.items() if any(mark in pattern for mark in marks)}
        kept |= ALL_PROJECTIONS if "self_attn" in pattern and not parts else parts
        kept |= _part_of(pattern.lower())
    said = {
        part: LAYER_FORMATS[named]
        for target, named in _said_of_layers(own, beside)
        if named in LAYER_FORMATS and not _is_routed(target)
        for part in _part_of(target.lower())
    }
    return dict.fromkeys(kept, "bfloat16") | said


def _part_of(name: str) -> set[str]:
    """Return the part that a module's name stands for, in a set of one or none."""
    if "linear_attn" in name or "self_attn" in name:
        return {"mixer"}
    if "shared_expert" in name:
        return {"shared"}
    return {"mlp"} if ".mlp" in name and not name.endswith(".gate") else set()


def _kv_cache(beside: Json, own: Json) -> str | None:
    for section, key in (
        (beside, "kv_cache_quant_algo"),
        (own, "kv_cache_quant_algo"),
        (own, "kv_cache_quant_method"),
        (own, "kv_cache_dtype"),
    ):
        named = section.get(key)
        if isinstance(named, str) and named.strip():
            return CACHES.get(named.strip().lower())
    scheme = _object(own, "kv_cache_scheme")
    bits, kind = scheme.get("num_bits"), str(scheme.get("type", "")).lower()
    if "fp8" in kind or (kind == "float" and isinstance(bits, int) and bits <= 8):  # noqa: PLR2004 - bits
        return "fp8"
    return None


def _dynamic(own: Json) -> bool | None:
    scheme = own.get("activation_scheme")
    if scheme in ("dynamic", "static"):
        return bool(scheme == "dynamic")
    said = [
        bool(part["dynamic"])
        for group in _groups(own)
        for part in (_object(group, "input_activations"), _object(group, "weights"))
        if "dynamic" in part
    ]
    return any(said) if said else None


def _patterns(section: Json) -> list[str]:
    keys = ("modules_to_not_convert", "exclude_modules", "ignore")
    return [each for key in keys for each in _list(section, key) if isinstance(each, str)]


def _groups(own: Json) -> list[Json]:
    return [each for each in _object(own, "config_groups").values() if isinstance(each, dict)]


def _object(section: Json, key: str) -> Json:
    value = section.get(key)
    return value if isinstance(value, dict) else {}


def _list(section: Json, key: str) -> list[Any]:
    value = section.get(key)
    return value if isinstance(value, list) else []
