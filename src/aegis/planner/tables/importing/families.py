"""Files of single model families: sparse and linear attention, hyper-connections, wide expert parallelism."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aegis.planner.tables.importing.schema import Schema, fixed, length_so_far, ms, quant, text, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aegis.planner.tables.importing.frames import Frame
    from aegis.planner.tables.importing.schema import Column

US = 1000.0  # in a ms
_RECURRENT = "fused_sigmoid_gating_delta_rule_update"  # what engines call all kernels of one recurrent step
_RECURRENT_KERNELS = ("fused_recurrent_gated_delta_rule", "fused_recurrent_gated_delta_rule_packed_decode")


def _new_length(frame: Frame) -> NDArray[Any]:
    """Return tokens of a sequence; one in the generation phase."""
    length = frame.whole("seq_len", 1)
    return np.where(frame.text("phase") == "generation", 1, length)


def _recurrent_kernel(frame: Frame) -> NDArray[Any]:
    kernel = frame.text("kernel_source")
    return np.where(np.isin(kernel, _RECURRENT_KERNELS), _RECURRENT, kernel)


def _native_heads(frame: Frame) -> NDArray[Any]:
    return frame.whole("num_heads") * np.maximum(frame.whole("tp_size", 1), 1)


def _skips_indexer(frame: Frame) -> NDArray[np.bool_]:
    return np.char.find(frame.text("kernel_source", ""), "_skip_indexer_") >= 0


def _has_indexer(frame: Frame) -> NDArray[np.bool_]:
    return ~_skips_indexer(frame)


def _skips_or_dense(frame: Frame) -> NDArray[np.bool_]:
    """Tell rows of layers without an indexer. Short prompts are dense and need none: those of models measured so."""
    source = frame.text("kernel_source", "")
    model = np.char.add(frame.text("model", ""), frame.text("kv_cache_dtype", ""))
    skips, dense = _skips_indexer(frame), np.char.find(source, "_dense_") >= 0
    measured = np.setdiff1d(model[skips], model[np.char.find(source, "_dsa_indexer_") >= 0])
    return skips | (dense & np.isin(model, measured))


def _transport(frame: Frame) -> NDArray[Any]:
    return np.where(frame.text("kernel_source") == "NVLinkOneSided", "nvlink_one_sided", "nvlink_two_sided")


def _transport_stage(frame: Frame) -> NDArray[Any]:
    stage = frame.text("op_name")
    for name in ("prepare", "dispatch", "combine"):
        stage = np.where(np.char.startswith(stage, f"alltoall_{name}"), name, stage)
    return stage


def _nodes(frame: Frame) -> NDArray[Any]:
    """Return trays of an NVLink domain, of four GPUs each."""
    return -(-frame.whole("moe_ep_size") // 4)


def _transport_format(frame: Frame) -> NDArray[Any]:
    low = frame.text("op_name") == "alltoall_combine_low_precision"
    return np.where(low, "fp4", quant("moe_dtype")(frame))


_BLOCK: dict[str, Column] = {
    "kv_cache": quant("kv_cache_dtype"),
    "gemm": quant("gemm_type"),
    "heads": whole("num_heads"),
    "batch": whole("batch_size"),
}
_CONTEXT: dict[str, Column] = {
    **_BLOCK,
    "fmha": quant("mla_dtype"),
    "prefix": whole("step", 0),
    "length": whole("isl"),
}
_GENERATION: dict[str, Column] = {**_BLOCK, "length": length_so_far}
_DELTA: dict[str, Column] = {
    "kernel": _recurrent_kernel,
    "phase": text("phase"),
    "d_model": whole("d_model"),
    "k_heads": whole("num_k_heads"),
    "k_size": whole("head_k_dim"),
    "v_heads": whole("num_v_heads"),
    "v_size": whole("head_v_dim"),
    "d_conv": whole("d_conv"),
    "batch": whole("batch_size"),
    "length": _new_length,
}
_MAMBA: dict[str, Column] = {
    "kernel": text("kernel_source"),
    "phase": text("phase"),
    "d_model": whole("d_model"),
    "d_state": whole("d_state"),
    "d_conv": whole("d_conv"),
    "heads": whole("nheads"),
    "head_size": whole("head_dim"),
    "groups": whole("n_groups"),
    "chunk": whole("chunk_size"),
    "batch": whole("batch_size"),
    "length": _new_length,
}
_WIDE_EXPERTS: dict[str, Column] = {
    "quant": quant("moe_dtype"),
    "distribution": text("distribution"),
    "topk": whole("topk"),
    "experts": whole("num_experts"),
    "hidden": whole("hidden_size"),
    "inter": whole("inter_size"),
    "moe_tp": whole("moe_tp_size"),
    "moe_ep": whole("moe_ep_size"),
    "tokens": whole("num_tokens"),
}


def _deepep(kernel: str, stage: str, sms: Column) -> dict[str, Column]:
    return {
        "kernel": fixed(kernel),
        "stage": fixed(stage),
        "format": fixed("default"),
        "gpus": lambda frame: 8 * frame.whole("node_num"),
        "nodes": whole("node_num"),
        "hidden": whole("hidden_size"),
        "topk": whole("num_topk"),
        "experts": whole("num_experts"),
        "sms": sms,
        "tokens": whole("num_token"),
    }


_LATENCY = ms("latency")

_SPARSE = (
    *(
        Schema(
            "dsa_context_module",
            "dsa_context_module",
            {**_CONTEXT, "lane": fixed(lane), "architecture": text("architecture")},
            _LATENCY,
            keep,
        )
        for lane, keep in (("full", _has_indexer), ("skip", _skips_or_dense))
    ),
    *(
        Schema(
            "dsa_generation_module",
            "dsa_generation_module",
            {**_GENERATION, "lane": fixed(lane), "architecture": text("architecture")},
            _LATENCY,
            keep,
        )
        for lane, keep in (("full", _has_indexer), ("skip", _skips_indexer))
    ),
    *(
        Schema(
            f"dsv4_{kind}_{phase}_module",
            f"dsv4_{phase}_module",
            {**columns, "native_heads": _native_heads, "compress_ratio": whole("compress_ratio")},
            _LATENCY,
        )
        for kind in ("csa", "hca")
        for phase, columns in (("context", _CONTEXT), ("generation", _GENERATION))
    ),
    *(
        Schema(
            f"msa_{phase}_module",
            f"msa_{phase}_module",
            {**columns, "architecture": text("architecture")},
            _LATENCY,
        )
        for phase, columns in (("context", _CONTEXT), ("generation", _GENERATION))
    ),
)

_WIDE = (
    *(
        Schema(
            f"wideep_{phase}_mla",
            f"wideep_{phase}_mla",
            {
                "lane": text("kernel_source"),
                "fmha": quant("mla_dtype"),
                "kv_cache": quant("kv_cache_dtype"),
                "heads": whole("num_heads"),
                "batch": whole("batch_size"),
                "length": length_so_far,
            },
            _LATENCY,
        )
        for phase in ("context", "generation")
    ),
    Schema(
        "moe_a2a",
        "moe_a2a",
        {
            "kernel": text("comm_backend"),
            "stage": text("phase"),
            "format": text("comm_dtype"),
            "gpus": whole("ep_size"),
            "nodes": whole("node_num"),
            "hidden": whole("hidden_size"),
            "topk": whole("topk"),
            "experts": whole("num_experts"),
            "sms": whole("sms"),
            "tokens": whole("num_tokens"),
        },
        ms("latency", per=US),
    ),
    *(
        Schema(
            "wideep_deepep_normal",
            "moe_a2a",
            _deepep("deepep_ht", stage, whole(f"{stage}_sms")),
            ms(f"{stage}_transmit_us", f"{stage}_notify_us", per=US),
        )
        for stage in ("dispatch", "combine")
    ),
    *(
        Schema(
            "wideep_deepep_ll",
            "moe_a2a",
            _deepep("deepep_ll", stage, fixed(0)),
            ms(f"{stage}_avg_t_us", per=US),
        )
        for stage in ("dispatch", "combine")
    ),
    Schema(
        "trtllm_alltoall",
        "moe_a2a",
        {
            "kernel": _transport,
            "stage": _transport_stage,
            "format": _transport_format,
            "gpus": whole("moe_ep_size"),
            "nodes": _nodes,
            "hidden": whole("hidden_size"),
            "topk": whole("topk"),
            "experts": whole("num_experts"),
            "sms": fixed(0),
            "tokens": whole("num_tokens"),
        },
        _LATENCY,
    ),
    *(
        Schema(
            f"wideep_{phase}_moe",
            "moe_ep",
            {
                **_WIDE_EXPERTS,
                "kernel": fixed("deepep_moe"),
                "phase": fixed(phase),
                "slots": whole("num_experts"),
            },
            _LATENCY,
        )
        for phase in ("context", "generation")
    ),
    *(
        Schema(
            "wideep_moe",
            "moe_ep",
            {
                **_WIDE_EXPERTS,
                "kernel": text("kernel_source"),
                "phase": fixed(phase),
                "slots": whole("num_slots"),
            },
            _LATENCY,
        )
        for phase in ("context", "generation")
    ),
)

FAMILIES: tuple[Schema, ...] = (
    Schema(
        "encoder_attention",
        "encoder_attention",
        {
            "fmha": quant("attn_dtype"),
            "head_size": whole("head_dim"),
            "heads": whole("num_heads"),
            "length": whole("isl"),
            "batch": whole("batch_size"),
        },
        _LATENCY,
    ),
    *_SPARSE,
    Schema("mamba2", "mamba2", _MAMBA, _LATENCY),
    Schema("gdn", "gdn", _DELTA, _LATENCY),
    Schema("kda", "kda", _DELTA, _LATENCY),
    Schema(
        "mhc_module",
        "mhc",
        {
            "stage": text("op_name"),
            "hc_mult": whole("hc_mult"),
            "hidden": whole("hidden_size"),
            "tokens": whole("num_tokens"),
        },
        _LATENCY,
    ),
    *_WIDE,
)
