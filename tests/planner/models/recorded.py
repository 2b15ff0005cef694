"""Operation lists recorded from aiconfigurator (0.12.0, and 0.3.0 for the guide's rules), in one vocabulary with ours.

Both sides become tuples: name, count, kind, parameters. Operations that cost nothing (groups of one GPU) are left out;
the exchange of tokens with experts is written out as the engine does it, which is where the recordings only name it.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from aegis.planner.operations import (
    AllReduce,
    Collective,
    ContextAttention,
    ContextMla,
    Fallback,
    Gemm,
    GenerationAttention,
    GenerationMla,
    Measured,
    Memory,
    MlaBmm,
    MlaModule,
    Moe,
    Operation,
    Overlap,
    PointToPoint,
)
from aegis.planner.problem import Mtp, Parallel, Quantization
from aegis.planner.systems import System

Row: TypeAlias = tuple[Any, ...]
Record: TypeAlias = dict[str, Any]

FIXTURES = Path(__file__).parents[2] / "fixtures" / "aiconfigurator"
BLACKWELL, HOPPER = 100, 90
GATHERED = {"nvfp4": 0.25 + 0.25 / 8, "fp8": 0.5, "fp8_block": 0.5}
LOGITS = ("context_logits_gemm", "generation_logits_gemm")


@cache
def recordings(name: str) -> dict[str, Record]:
    found: dict[str, Record] = json.loads(gzip.decompress((FIXTURES / f"{name}.json.gz").read_bytes()))
    return found


def system(sm_version: int, *, gpus_per_node: int = 8, name: str = "test") -> System:
    return System(
        name=name,
        memory_bandwidth=4.8e12,
        memory_capacity=141 << 30,
        flops={"bfloat16": 989e12, "fp8": 1978e12},
        sm_version=sm_version,
        gpus_per_node=gpus_per_node,
        intra_node_bandwidth=450e9,
        inter_node_bandwidth=50e9,
        nccl_memory={1: 0},
        other_memory=0,
    )


def split_of(record: Record) -> Parallel:
    return Parallel(
        tp=record["tp"],
        pp=record.get("pp", 1),
        dp=record["dp"],
        moe_tp=record.get("moe_tp", 1),
        moe_ep=record.get("moe_ep") or record.get("ep") or 1,
        cp=record.get("cp", 1),
    )


def quantization_of(record: Record) -> Quantization:
    return Quantization(
        gemm=_inside(record["gemm"]),
        moe=_inside(record["moe"]),
        kv_cache=_inside(record["kv"]),
        fmha=_inside(record["fmha"]),
    )


def mtp_of(record: Record) -> Mtp:
    return Mtp(drafted=record.get("nextn", 0), accept_rates=(0.85, 0.3, 0.0, 0.0, 0.0))


def described(operations: tuple[Operation, ...]) -> list[Row]:
    """Return our operations as rows."""
    return [_row(each) for each in operations]


def _row(operation: Operation) -> Row:
    match operation:
        case Overlap():
            return operation.name, "overlap", *map(_inner, (operation.first, operation.second))
        case Fallback():
            return operation.name, "fallback", *map(_inner, (operation.primary, operation.otherwise))
        case Measured():
            return operation.name, round(operation.count, 6), operation.table, *sorted(operation.key)
    return operation.name, operation.count, *_parameters(operation)


def _inner(operations: tuple[Operation, ...]) -> tuple[Row, ...]:
    return tuple(described(operations))


def _parameters(operation: Operation) -> Row:  # noqa: C901, PLR0911 - one case an operation
    formats: Row
    match operation:
        case Memory():
            return "memory", operation.bytes_per_token, operation.token_split
        case Gemm():
            flags = (operation.quantized_input, operation.sampled, operation.below_grid)
            return "gemm", operation.n, operation.k, operation.quant, *flags, operation.token_split
        case ContextAttention():
            formats = (operation.kv_cache, operation.fmha, operation.qk_norm, operation.cp)
            return "attention", *_heads(operation), *formats
        case GenerationAttention():
            return "attention", *_heads(operation), operation.kv_cache
        case ContextMla():
            return "mla", operation.heads, operation.kv_cache, operation.fmha, operation.cp
        case GenerationMla():
            return "mla", operation.heads, operation.kv_cache
        case MlaBmm():
            return "bmm", operation.heads, operation.quant, operation.stage
        case MlaModule():
            formats = (operation.kv_cache, operation.fmha, operation.gemm)
            return "module", operation.phase, operation.heads, operation.native_heads, *formats
        case Moe():
            sizes = (operation.hidden, operation.inter, operation.topk, operation.experts)
            ways = (operation.moe_tp, operation.moe_ep, operation.attention_dp)
            return "moe", *sizes, *ways, operation.quant, operation.distribution, operation.gated
        case AllReduce():
            return "all_reduce", operation.gpus, operation.width, operation.token_split
        case Collective():
            return operation.kind, operation.gpus, operation.width
        case PointToPoint():
            return "p2p", operation.bytes_per_token, operation.token_split
    raise AssertionError(operation)


def _heads(operation: ContextAttention | GenerationAttention) -> Row:
    return operation.heads, operation.kv_heads, operation.head_size, operation.window


def expected(operations: list[Record], sm_version: int) -> list[Row]:
    """Return a list of 0.12.0 as rows."""
    return [row for each in operations for row in _expected(each, sm_version)]


def _expected(operation: Record, sm: int) -> list[Row]:  # noqa: C901, PLR0911, PLR0912 - one case an operation
    formats: Row
    ((kind, p),) = operation.items()
    name, count = p["name"], p.get("scale_factor", 1.0)
    split = max(p.get("seq_split", 1), p.get("scale_num_tokens", 1))
    match kind:
        case "Embedding":
            return [(name, count, "memory", p["hidden_size"] * 2.0, split)]
        case "Elementwise":
            return [(name, count, "memory", p["bytes_per_token"], split)]
        case "Gemm":
            flags = (p["low_precision_input"], name in LOGITS, p["below_grid_sol"])
            return [(name, count, "gemm", p["n"], p["k"], p["quant_mode"], *flags, split)]
        case "ContextAttention":
            formats = (p["kv_cache_dtype"], p["fmha_quant_mode"], p["use_qk_norm"], p["cp_size"])
            return [(name, count, "attention", *_recorded_heads(p), *formats)]
        case "GenerationAttention":
            return [(name, count, "attention", *_recorded_heads(p), p["kv_cache_dtype"])]
        case "ContextMla":
            formats = (p["kv_cache_dtype"], p["fmha_quant_mode"], p["cp_size"])
            return [(name, count, "mla", p["num_heads"], *formats)]
        case "GenerationMla":
            return [(name, count, "mla", p["num_heads"], p["kv_cache_dtype"])]
        case "MlaBmm":
            return [(name, count, "bmm", p["num_heads"], p["quant_mode"], "pre" if p["is_pre"] else "post")]
        case "MlaModuleContext" | "MlaModuleGeneration":
            formats = (p["kv_cache_dtype"], p["fmha_quant_mode"], p["gemm_quant_mode"])
            phase = kind.removeprefix("MlaModule").lower()
            return [(name, count, "module", phase, p["num_heads"], p["native_num_heads"], *formats)]
        case "Moe":
            sizes = (p["hidden_size"], p["inter_size"], p["topk"], p["num_experts"])
            ways = (p["moe_tp_size"], p["moe_ep_size"], p["attention_dp_size"])
            formats = (p["quant_mode"], p["workload_distribution"], p["is_gated"])
            return [(name, count, "moe", *sizes, *ways, *formats)]
        case "CustomAllReduce":
            row = (name, count, "all_reduce", p["tp_size"], float(p["hidden_size"]), split)
            return [row] if p["tp_size"] > 1 else []
        case "Nccl":
            return [(name, count, p["operation"], p["num_gpus"], float(p["hidden_size"]))]
        case "P2P":
            return [(name, count, "p2p", p["hidden_size"] * 2.0, split)] if p["pp_size"] > 1 else []
        case "MoeDispatch":
            return [(name, count, *row) for row in _exchange(p, sm)]
        case "Overlap":
            return [(name, "overlap", *(tuple(expected(p[each], sm)) for each in ("group_a", "group_b")))]
        case "Fallback":
            return [
                (name, "fallback", tuple(expected([p["primary"]], sm)), tuple(expected(p["fallback"], sm)))
            ]
    return _measured(kind, p)


def _recorded_heads(p: Record) -> Row:
    return p["n"], p["n_kv"], p["head_size"], p["window_size"]


def _exchange(p: Record, sm: int) -> list[Row]:  # noqa: PLR0911 - one return an engine's way
    """Write out what a dispatch does (planner-model.md 3.8)."""
    gpus, dp, hidden, before = (
        p["moe_tp_size"] * p["moe_ep_size"],
        p["attention_dp_size"],
        float(p["hidden_size"]),
        p["pre_dispatch"],
    )
    attention_tp, backend = max(gpus // dp, 1), p["backend"]
    direction = "all_gather" if before else "reduce_scatter"
    sums: list[Row] = [("all_reduce", gpus, hidden, 1)]
    spreads: list[Row] = [(direction, gpus, hidden * dp)]
    if p["attn_cp_size"] > 1:
        if p["is_context"]:
            return [(direction, gpus, hidden)]
        return [] if before else sums
    if backend == "vllm":
        reduced = attention_tp > 1 and not (before and p["attn_ar_modeled"])
        return [*(sums if reduced else []), *(spreads if dp > 1 else [])]
    if backend == "sglang" and attention_tp > 1 and dp > 1:
        inner = ("reduce_scatter" if before else "all_gather", attention_tp, hidden)
        return [inner, *spreads] if before else [*spreads, inner]
    if backend == "trtllm" and sm == BLACKWELL and dp > 1 and before:
        return [("all_gather", gpus, dp * (hidden * GATHERED.get(p["moe_quant"], 1.0)))]
    if backend == "trtllm" and sm == BLACKWELL and dp > 1:
        return spreads
    if attention_tp > 1:
        return sums
    return spreads if dp > 1 else []


def _measured(kind: str, p: Record) -> list[Row]:
    name, count = p["name"], p["scale_factor"]
    if kind in ("DsaContext", "DsaGeneration"):
        key = {
            "kv_cache": p["kv_cache_dtype"],
            "gemm": p["gemm_quant_mode"],
            "architecture": p["architecture"],
            "heads": p["num_heads"],
        }
        if kind == "DsaContext":
            key["fmha"] = p["fmha_quant_mode"]
        table = f"dsa_{kind.removeprefix('Dsa').lower()}_module"
        full = p["full_frac"]
        shares = (("full", full), ("skip", 1 - full))
        return [
            (name, round(count * share, 6), table, *sorted({"lane": lane, **key}.items()))
            for lane, share in shares
            if share
        ]
    columns = {
        "Mamba2": {"d_model": "d_model", "d_state": "d_state", "d_conv": "d_conv", "nheads": "heads"}
        | {"head_dim": "head_size", "n_groups": "groups", "chunk_size": "chunk"},
        "Gdn": {"d_model": "d_model", "num_k_heads": "k_heads", "head_k_dim": "k_size"}
        | {"num_v_heads": "v_heads", "head_v_dim": "v_size", "d_conv": "d_conv"},
    }[kind]
    key = {ours: p[theirs] for theirs, ours in columns.items()}
    key |= {"kernel": p["kernel_source"], "phase": p["phase"]}
    return [(name, round(count, 6), kind.lower(), *sorted(key.items()))]


def expected_guide(operations: list[tuple[str, Record]], sm_version: int) -> list[Row]:
    """Return a list of 0.3.0 as rows."""
    return [row for kind, p in operations for row in _guide(kind, p, sm_version)]


def _guide(kind: str, p: Record, sm: int) -> list[Row]:  # noqa: PLR0911 - one case an operation
    name, count = p["_name"].replace("nrom", "norm"), float(p["_scale_factor"])
    match kind:
        case "Embedding":
            return [(name, count, "memory", p["_column_size"] * 2.0, 1)]
        case "ElementWise":
            return [(name, count, "memory", (p["_dim_in"] + p["_dim_out"]) * 2.0, 1)]
        case "GEMM":
            quant, sampled = _inside(p["_quant_mode"]), name in LOGITS
            return [(name, count, "gemm", p["_n"], p["_k"], quant, False, sampled, False, 1)]
        case "AllReduce":
            row = (name, count, "all_reduce", p["_tp_size"], float(p["_h"]), 1)
            return [row] if p["_tp_size"] > 1 else []
        case "P2P":
            return [(name, count, "p2p", p["_h"] * 2.0, 1)] if p["_pp_size"] > 1 else []
        case "MoEDispatch":
            return [(name, count, *row) for row in _guide_exchange(p, sm)]
        case "MoE":
            sizes = (p["_hidden_size"], p["_inter_size"], p["_topk"], p["_num_experts"])
            ways = (p["_moe_tp_size"], p["_moe_ep_size"], p["_attention_dp_size"])
            return [
                (
                    name,
                    count,
                    "moe",
                    *sizes,
                    *ways,
                    _inside(p["_quant_mode"]),
                    p["_workload_distribution"],
                    True,
                )
            ]
    return [(name, count, *_guide_attention(kind, p))]


def _guide_attention(kind: str, p: Record) -> Row:
    if kind in ("ContextAttention", "GenerationAttention"):
        heads = (p["_n"], p["_n_kv"], p["_head_size"], p["_window_size"])
        if kind == "GenerationAttention":
            return "attention", *heads, _inside(p["_kv_cache_dtype"])
        return "attention", *heads, _inside(p["_kvcache_quant_mode"]), _inside(p["_fmha_quant_mode"])
    if kind == "ContextMLA":
        formats = (_inside(p["_kvcache_quant_mode"]), _inside(p["_fmha_quant_mode"]))
        return "mla", p["_num_heads"], *formats, 1
    if kind == "GenerationMLA":
        return "mla", p["_num_heads"], _inside(p["_kv_cache_dtype"])
    return "bmm", p["_num_heads"], _inside(p["_quant_mode"]), "pre" if p["_if_pre"] else "post"


def _guide_exchange(p: Record, sm: int) -> list[Row]:
    gpus, dp, hidden, before = (
        p["num_gpus"],
        p["_attention_dp_size"],
        float(p["_hidden_size"]),
        p["_pre_dispatch"],
    )
    if p["_attention_tp_size"] > 1:
        return [("all_reduce", gpus, hidden, 1)]
    if dp == 1:
        return []
    if sm != BLACKWELL:
        return [("all_gather" if before else "reduce_scatter", gpus, hidden * dp)]
    width = hidden * (1 + min(p["_topk"], dp)) / 2 / 4
    first: Row = ("alltoall", gpus, width)
    return [first, ("alltoall", gpus, width / 8), ("p2p", 0.0, 1)] if before else [first]


def _inside(name: str) -> str:
    return "bfloat16" if name == "float16" else name
