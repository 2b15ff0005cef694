"""Which columns of AIConfigurator's files become which keys and axes of our tables.

Facts from its data files (Apache-2.0) and from reading what its loaders do with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from aegis.planner.tables.importing.frames import Frame

Column: TypeAlias = "Callable[[Frame], NDArray[Any]]"
_FORMATS = {"float16": "bfloat16", "fp8_e4m3": "fp8"}  # what formats are called here
_NATIVE_HEADS = {"deepseek-ai/DeepSeek-V3": 128, "deepseek-ai/DeepSeek-R1": 128}


class Schema(NamedTuple):
    """How the rows of one kind of file become rows of an operation."""

    file: str  # without _perf.parquet or _perf.txt
    operation: str
    columns: Mapping[str, Column]  # by the names of `slices.LAYOUTS`
    latency: Column
    keep: Callable[[Frame], NDArray[np.bool_]] | None = None


def text(name: str, default: str | None = None) -> Column:
    """Return a column of text."""
    return lambda frame: frame.text(name, default)


def quant(name: str, default: str | None = None) -> Column:
    """Return a column of number formats, by the names used here."""

    def read(frame: Frame) -> NDArray[Any]:
        values = frame.text(name, default)
        for old, new in _FORMATS.items():
            values = np.where(values == old, new, values)
        return values

    return read


def whole(name: str, default: int | None = None) -> Column:
    """Return a column of whole numbers."""
    return lambda frame: frame.whole(name, default)


def ms(*names: str, per: float = 1.0) -> Column:
    """Return the sum of columns as ms; `per` is how many of their unit make one."""
    return lambda frame: np.sum([frame.number(name) for name in names], axis=0) / per


def fixed(value: str | int) -> Column:
    """Return the same value in every row."""
    return lambda frame: np.full(frame.rows, value)


def _kv_heads(frame: Frame) -> NDArray[Any]:
    heads, kv_heads = frame.whole("num_heads"), frame.whole("num_key_value_heads")
    return np.where(heads == kv_heads, 0, kv_heads)


def length_so_far(frame: Frame) -> NDArray[Any]:
    """Return tokens before this step and those of it."""
    return frame.whole("isl") + frame.whole("step", 0)


def _mla_heads(frame: Frame) -> NDArray[Any]:
    """Return heads of one GPU; the oldest files have the split of 128 heads instead."""
    return frame.whole("num_heads") if "num_heads" in frame.columns else 128 // frame.whole("tp_size")


def _native_heads(frame: Frame) -> NDArray[Any]:
    model = frame.text("model", "")
    heads = frame.whole("num_heads") * np.maximum(frame.whole("tp_size", 1), 1)
    for name, native in _NATIVE_HEADS.items():
        heads = np.where(model == name, native, heads)
    return heads


def _stage(frame: Frame) -> NDArray[Any]:
    return np.where(np.char.endswith(frame.text("op_name"), "pre"), "pre", "post")


def _moe_lane(frame: Frame) -> NDArray[Any]:
    source = frame.text("kernel_source", "")
    return np.where(source == "moe_torch_flow_min_latency", "min_latency", "default")


def _moe_quant(frame: Frame) -> NDArray[Any]:
    """Return the experts' format; one kernel of SGLang is told apart by a format of its own, as its users choose it."""
    values = quant("moe_dtype")(frame)
    own = frame.text("kernel_source", "") == "sglang_mxfp4_flashinfer_trtllm_moe"
    return np.where(own & (values == "w4a8_mxfp4_mxfp8"), "w4a8_mxfp4_mxfp8_trtllm", values)


def _graph_only(frame: Frame) -> NDArray[np.bool_]:
    """Tell the all-reduces that ran in a graph, as in the engines. On Intel there are no others to choose from."""
    eager = np.char.endswith(frame.text("kernel_source", ""), "_eager")
    eager |= np.char.endswith(frame.text("backend", ""), "_eager")
    intel: NDArray[np.bool_] = np.char.startswith(frame.text("device", ""), "Intel")
    return intel | ~eager


def _prefill_kernel(frame: Frame) -> NDArray[np.bool_]:
    """Tell rows of prefill kernels: what decode kernels take for prompts of one token does not count."""
    return ~np.char.endswith(frame.text("kernel_source", ""), "decode")


def _half(frame: Frame) -> NDArray[np.bool_]:
    half: NDArray[np.bool_] = frame.text("nccl_dtype", "half") == "half"
    return half


_ATTENTION = {
    "lane": text("kernel_source", "default"),
    "kv_cache": quant("kv_cache_dtype"),
    "kv_heads": _kv_heads,
    "head_size": whole("head_dim", 128),
    "window": whole("window_size", 0),
    "heads": whole("num_heads"),
    "batch": whole("batch_size"),
}
_MLA = {"kv_cache": quant("kv_cache_dtype"), "heads": _mla_heads, "batch": whole("batch_size")}
_MODULE = {
    "kv_cache": quant("kv_cache_dtype"),
    "gemm": quant("gemm_type"),
    "heads": whole("num_heads"),
    "batch": whole("batch_size"),
}
_EXPERTS = {
    "quant": _moe_quant,
    "distribution": text("distribution", "uniform"),
    "topk": whole("topk"),
    "experts": whole("num_experts"),
    "hidden": whole("hidden_size"),
    "inter": whole("inter_size"),
    "moe_tp": whole("moe_tp_size"),
    "moe_ep": whole("moe_ep_size"),
    "tokens": whole("num_tokens"),
}
_LATENCY: Column = ms("latency")
_FMHA, _LENGTH = quant("mla_dtype"), whole("isl")

SCHEMAS: tuple[Schema, ...] = (
    Schema(
        "gemm",
        "gemm",
        {"quant": quant("gemm_dtype"), "n": whole("n"), "k": whole("k"), "m": whole("m")},
        _LATENCY,
    ),
    Schema(
        "context_attention",
        "context_attention",
        {**_ATTENTION, "fmha": quant("attn_dtype"), "length": whole("isl")},
        _LATENCY,
        _prefill_kernel,
    ),
    Schema("generation_attention", "generation_attention", {**_ATTENTION, "length": length_so_far}, _LATENCY),
    Schema("context_mla", "context_mla", {**_MLA, "fmha": _FMHA, "length": _LENGTH}, _LATENCY),
    Schema("generation_mla", "generation_mla", {**_MLA, "length": length_so_far}, _LATENCY),
    Schema(
        "mla_bmm",
        "mla_bmm",
        {
            "quant": quant("bmm_dtype", "bfloat16"),
            "stage": _stage,
            "heads": whole("num_heads"),
            "tokens": whole("num_tokens"),
        },
        _LATENCY,
    ),
    Schema(
        "mla_context_module",
        "mla_context_module",
        {**_MODULE, "fmha": _FMHA, "native_heads": _native_heads, "length": _LENGTH},
        _LATENCY,
    ),
    Schema(
        "mla_generation_module",
        "mla_generation_module",
        {**_MODULE, "native_heads": _native_heads, "length": length_so_far},
        _LATENCY,
    ),
    Schema("moe", "moe", {**_EXPERTS, "lane": _moe_lane}, _LATENCY),
    Schema(
        "custom_allreduce",
        "custom_allreduce",
        {"gpus": whole("num_gpus"), "elements": whole("message_size")},
        _LATENCY,
        _graph_only,
    ),
    *(
        Schema(
            file,
            "nccl",
            {"kind": text("op_name"), "gpus": whole("num_gpus"), "elements": whole("message_size")},
            _LATENCY,
            _half,
        )
        for file in ("nccl", "oneccl")
    ),
    *(
        Schema(file, operation, {"quant": quant("quant_dtype"), "m": whole("m"), "k": whole("k")}, _LATENCY)
        for file, operation in (("computescale", "compute_scale"), ("scale_matrix", "scale_matrix"))
    ),
)
