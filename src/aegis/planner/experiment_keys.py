"""The keys of a file of experiments: what each is called here, and its type.

A file has one of two forms: sections (`config`, `worker_config`, ...), as in the guide, or, as newer files have it,
flat keys that begin with the kind of workers they are for (`prefill_tp_candidates`). Both may stand in one file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from aegis.planner.problem import DatabaseMode, ServingMode
from aegis.planner.task import Formats


class Key(NamedTuple):
    """A key of a file."""

    name: str  # here
    type: Any
    role: str = ""  # of the workers it is for; "": all


_Size = Annotated[int, msgspec.Meta(ge=1)]
_Sizes = tuple[_Size, ...]
_Factor = Annotated[float, msgspec.Meta(gt=0, le=100)]
_Rate = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count = Annotated[int, msgspec.Meta(ge=0)]

PAIR = ("prefill", "decode")
DIMENSIONS = ("tp", "pp", "dp", "moe_tp", "moe_ep", "cp")


def _alike(type_: Any, *keys: str) -> dict[str, Key]:
    """Return keys that are called the same here."""
    return {key: Key(key, type_) for key in keys}


_FORMATS = {
    f"{name}_quant_mode": Key(name.replace("kvcache", "kv_cache"), str)
    for name in ("gemm", "moe", "kvcache", "fmha", "comm")
}
_WIDE = dict.fromkeys(("enable_wide_ep", "enable_wideep"), Key("wide_ep", bool))
_PLACE = {
    "system_name": Key("system", str),
    "backend_name": Key("backend", Literal["trtllm", "vllm", "sglang", "any", "auto"]),
    "backend_version": Key("version", str),
}
_WORKER = {
    **_FORMATS,
    **_WIDE,
    **_PLACE,
    "num_gpu_per_worker": Key("gpus", _Sizes),
    **{f"{name}_list": Key(name, _Sizes) for name in DIMENSIONS},
}
_CANDIDATES = {
    "num_gpu_candidates": Key("gpus", _Sizes),
    **{f"{name}_candidates": Key(name, _Sizes) for name in DIMENSIONS},
}
_FLAT_WORKER = {"model_path": Key("model", str), **_PLACE, **_FORMATS, **_WIDE, **_CANDIDATES}
_REPLICA = {
    "num_gpu_per_replica": Key("replica_gpus", _Sizes),
    "max_gpu_per_replica": Key("max_gpus", _Count),
    **dict.fromkeys(("max_prefill_worker", "max_prefill_workers"), Key("max_prefill_workers", _Size)),
    **dict.fromkeys(("max_decode_worker", "max_decode_workers"), Key("max_decode_workers", _Size)),
}
_TUNED = {
    "{}_correction_scale": ("{}_correction", _Factor),  # on throughput, as in the guide
    "rate_match_{}_degradation": ("{}_correction", _Factor),
    "{}_latency_correction_scale": ("{}_latency", _Factor),
    "{}_latency_correction": ("{}_latency", _Factor),
    "{}_max_batch_size": ("{}_max_batch", _Size),
}
_TUNING = {
    key.format(role): Key(name.format(role), type_) for role in PAIR for key, (name, type_) in _TUNED.items()
}
_CONFIG = {
    "nextn": Key("nextn", _Count),
    "nextn_accept_rates": Key("accept_rates", tuple[_Rate, ...]),
    "nextn_accepted": Key("accepted", Annotated[float, msgspec.Meta(ge=0)]),
    **_REPLICA,
    **_TUNING,
}
# What the other tool knows too, and no figure here depends on: whether a plan should say so.
UNUSED = {
    **dict.fromkeys(("applied_layers", "enable_encoder_dp", "engine_step_backend", "forward_model"), False),
    **dict.fromkeys(("is_moe", "pareto_sweep", "task_name"), False),
    **dict.fromkeys(("attention_backend", "moe_backend", "transfer_policy", "wideep_num_slots"), True),
    **{
        f"{role}{key}": True
        for role in ("", "prefill_", "decode_")
        for key in ("enable_chunked_prefill", "enable_eplb")
    },
    **dict.fromkeys(("enable_epd", "encoder_batch_candidates", "encoder_latency_correction"), True),
    **dict.fromkeys(("encoder_system_name", "encoder_tp_candidates", "max_encoder_workers"), True),
    **dict.fromkeys(("image_height", "image_width", "num_images_per_request"), True),
    **dict.fromkeys(("autoscale_ttft_correction_factor", "rate_match_encoder_degradation"), False),
}
SECTIONS = {
    "worker_config": "agg",
    **{f"{role}_worker_config": role for role in PAIR},
    "replica_config": "",
    "advanced_tuning_config": "",
}
EXPERIMENT = {
    "mode": Key("mode", Literal["patch", "replace"]),
    "serving_mode": Key("serving_mode", ServingMode),
    "model_name": Key("model", str),
    **_alike(int, "total_gpus", "isl", "osl"),
    **_alike(int, "prefix", "max_seq_len"),
    **_alike(float, "ttft", "tpot", "request_latency", "free_gpu_memory_fraction"),
    **_alike(DatabaseMode, "database_mode"),
    **_alike(tuple[str, ...], "profiles"),
    **_alike(str, "use_specific_quant_mode"),
    "decode_system_name": Key("system", str, "decode"),
    **_FLAT_WORKER,
    **{f"agg_{key}": each._replace(role="agg") for key, each in _CANDIDATES.items()},
    **{f"{role}_{key}": each._replace(role=role) for role in PAIR for key, each in _FLAT_WORKER.items()},
    **_CONFIG,
}


def keys_of(section: str) -> dict[str, Key]:
    """Return the keys of a section of an experiment; "" is the experiment itself."""
    if section in {"", "config"}:
        return EXPERIMENT
    role = SECTIONS[section]
    if not role:
        return _REPLICA if section == "replica_config" else _TUNING
    return {key: each._replace(role=role) for key, each in _WORKER.items()}


_FP8 = Formats(gemm="fp8", moe="fp8", kv_cache="fp8", fmha="fp8", comm="half")
_BF16 = Formats(gemm="bfloat16", moe="bfloat16", kv_cache="bfloat16", fmha="bfloat16", comm="half")
PROFILES = {
    "fp8_default": _FP8,
    "float16_default": _BF16,
    "nvfp4_default": replace(_FP8, gemm="nvfp4", moe="nvfp4"),
    # as newer files call them
    "fp8": _FP8,
    "fp8_static": replace(_FP8, gemm="fp8_static"),
    "bfloat16": _BF16,
    "nvfp4": replace(_FP8, gemm="nvfp4", moe="nvfp4"),
    "mxfp4": replace(_BF16, moe="w4a16_mxfp4"),
}
