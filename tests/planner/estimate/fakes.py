"""A small machine and a small model whose times can be reckoned by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aegis.planner.estimate.worker import Worker
from aegis.planner.estimator import AIC_012, Estimator
from aegis.planner.models.graph import Graph, KvGroup
from aegis.planner.operations import (
    ContextAttention,
    ContextMla,
    Gemm,
    GenerationAttention,
    GenerationMla,
    Leaf,
    MlaModule,
    NoData,
    Query,
)
from aegis.planner.problem import Mtp, Parallel, Quantization
from aegis.planner.systems import System

if TYPE_CHECKING:
    from aegis.planner.operations import Floats, Operation

GIB = 2**30
NO_GIB = {1: 0, 2: 0, 4: 0, 8: 0}


def system(**changes: Any) -> System:
    values: dict[str, Any] = {
        "name": "small",
        "memory_bandwidth": 1e12,
        "memory_capacity": 80 * GIB,
        "flops": {"bfloat16": 1e15},
        "gpus_per_node": 8,
        "intra_node_bandwidth": 1e11,
        "inter_node_bandwidth": 1e10,
        "nccl_memory": NO_GIB,
        "other_memory": 2 * GIB,
    }
    return System(**{**values, **changes})


class Reckoned:
    """Times by simple rules; every query that was asked is kept."""

    notes = ()

    def __init__(self, on: System | None = None, *, lacks: type[Leaf] | None = None) -> None:
        self.system = system() if on is None else on
        self.lacks = lacks
        self.asked: list[tuple[str, Query]] = []

    def latency(self, operation: Leaf, at: Query) -> Floats:
        """GEMM: tokens / 1000 ms, and 1 ms; attention: pairs of tokens / 1e6 (context), cached tokens / 1e5."""
        if self.lacks is not None and isinstance(operation, self.lacks):
            raise NoData(f"no {operation.name}")
        self.asked.append((operation.name, at))
        tokens, batch, length, prefix, sampled = (np.asarray(each, dtype=np.float64) for each in at)
        match operation:
            case Gemm():
                return 1 + np.asarray(sampled if operation.sampled else tokens) / 1000
            case ContextAttention() | ContextMla() | MlaModule(phase="context"):
                return batch * ((length + prefix) ** 2 - prefix**2) / 1e6
            case GenerationAttention() | GenerationMla() | MlaModule():
                return batch * length / 1e5
            case _:
                return np.zeros(np.broadcast_shapes(*(each.shape for each in at)))


def gemm(name: str, **changes: Any) -> Gemm:
    return Gemm(name=name, n=1, k=1, quant="bfloat16", **changes)


CONTEXT = ContextAttention(
    name="context_attention", heads=8, kv_heads=8, head_size=64, kv_cache="bfloat16", fmha="bfloat16"
)
GENERATION = GenerationAttention(
    name="generation_attention", heads=8, kv_heads=8, head_size=64, kv_cache="bfloat16"
)


def graph(
    context: tuple[Operation, ...] = (gemm("qkv"), CONTEXT, gemm("logits", sampled=True)),
    generation: tuple[Operation, ...] = (gemm("qkv"), GENERATION, gemm("logits", sampled=True)),
    **changes: Any,
) -> Graph:
    values: dict[str, Any] = {
        "weights": 10.0 * GIB,
        "kv_groups": (KvGroup(2**16),),
        "layers": 4,
        "family": "LLAMA",
        "attention_width": 512,
        "hidden": 512,
    }
    return Graph(context=context, generation=generation, **{**values, **changes})


def worker(
    of: Graph | None = None,
    *,
    on: Reckoned | None = None,
    estimator: Estimator = AIC_012,
    **changes: Any,
) -> Worker:
    values: dict[str, Any] = {"split": Parallel(), "backend": "trtllm", "version": "1.0", "mtp": Mtp()}
    return Worker(
        graph=graph() if of is None else of,
        performance=Reckoned() if on is None else on,
        quantization=Quantization(gemm="bfloat16", moe="bfloat16", kv_cache="bfloat16", fmha="bfloat16"),
        estimator=estimator,
        **{**values, **changes},
    )
