"""Answers that aiconfigurator 0.12.0 gave for single operations, and the operations they are about."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aegis.planner.operations import (
    AllReduce,
    Collective,
    ContextAttention,
    Gemm,
    GenerationAttention,
    GenerationMla,
    Leaf,
    Memory,
    MlaBmm,
    Moe,
    Query,
    query,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIXTURES = Path(__file__).parents[2] / "fixtures" / "aiconfigurator"
EXTRACT = FIXTURES / "h200_sxm-trtllm-extract.table"


@cache
def recordings() -> tuple[dict[str, Any], ...]:
    with gzip.open(FIXTURES / "ops-0.12.0.json.gz") as file:
        return tuple(json.load(file)["ops"])


def of_mode(mode: str) -> Iterator[dict[str, Any]]:
    return (each for each in recordings() if each["mode"] == mode)


def query_of(record: dict[str, Any]) -> Query:
    tokens = record["bs"] if record["x"] is None else record["x"]
    return query(tokens=tokens, batch=record["bs"], length=record["s"], prefix=record["prefix"])


def operation_of(record: dict[str, Any]) -> Leaf:
    kind, p = record["kind"], record["params"]
    builders: dict[str, Callable[[], Leaf]] = {
        "Gemm": lambda: Gemm(name=kind, n=p["n"], k=p["k"], quant=p["quant_mode"]),
        "ContextAttention": lambda: ContextAttention(
            name=kind,
            heads=p["n"],
            kv_heads=p["n_kv"],
            head_size=p["head_size"],
            window=p["window_size"],
            kv_cache=p["kv_cache_dtype"],
            fmha=p["fmha_quant_mode"],
            qk_norm=p["use_qk_norm"],
            lanes=tuple(p["lane_order"]),
        ),
        "GenerationAttention": lambda: GenerationAttention(
            name=kind,
            heads=p["n"],
            kv_heads=p["n_kv"],
            head_size=p["head_size"],
            window=p["window_size"],
            kv_cache=p["kv_cache_dtype"],
            lanes=tuple(p["lane_order"]),
        ),
        "CustomAllReduce": lambda: AllReduce(name=kind, gpus=p["tp_size"], width=p["hidden_size"]),
        "Nccl": lambda: Collective(
            name=kind, kind=p["operation"], gpus=p["num_gpus"], width=p["hidden_size"]
        ),
        "Moe": lambda: Moe(
            name=kind,
            hidden=p["hidden_size"],
            inter=p["inter_size"],
            topk=p["topk"],
            experts=p["num_experts"],
            moe_tp=p["moe_tp_size"],
            moe_ep=p["moe_ep_size"],
            attention_dp=p["attention_dp_size"],
            quant=p["quant_mode"],
            distribution=p["workload_distribution"],
            gated=p["is_gated"],
        ),
        "MlaBmm": lambda: MlaBmm(
            name=kind, heads=p["num_heads"], quant=p["quant_mode"], stage="pre" if p["is_pre"] else "post"
        ),
        "GenerationMla": lambda: GenerationMla(name=kind, heads=p["num_heads"], kv_cache=p["kv_cache_dtype"]),
        "Embedding": lambda: Memory(name=kind, bytes_per_token=2 * p["hidden_size"]),
    }
    return builders[kind]()
