"""Whole steps of known models: estimated by curves against the sum of measured tables."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aegis.errors import AegisError
from aegis.planner.models.build import build_graph
from aegis.planner.models.resolve import find_model
from aegis.planner.operations import NoData, query
from aegis.planner.perf.analytic import Analytic
from aegis.planner.perf.evaluate import total
from aegis.planner.perf.measured import Measured
from aegis.planner.problem import Parallel, Quantization

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.models.graph import Graph
    from aegis.planner.operations import Floats
    from aegis.planner.perf.efficiency import Efficiency
    from aegis.planner.problem import Backend
    from aegis.planner.systems import System
    from aegis.planner.tables.slices import Tables

_BFLOAT16 = Quantization(gemm="bfloat16", moe="bfloat16", kv_cache="bfloat16", fmha="bfloat16")
_FP8 = Quantization(gemm="fp8", moe="fp8", kv_cache="fp8", fmha="bfloat16")
_FP8_BLOCK = Quantization(gemm="fp8_block", moe="fp8_block", kv_cache="bfloat16", fmha="bfloat16")
_DENSE = tuple(Parallel(tp=size) for size in (1, 2, 4, 8))
_WIDE = (Parallel(tp=8, moe_ep=8), Parallel(tp=8, moe_tp=8))
MODELS = {
    "LLAMA3.1_8B": (_DENSE[:2], (_BFLOAT16, _FP8)),
    "LLAMA3.1_70B": (_DENSE[1:], (_BFLOAT16, _FP8)),
    "QWEN3_32B": (_DENSE, (_BFLOAT16, _FP8)),
    "DEEPSEEK_V3": (_WIDE, (_FP8_BLOCK, _BFLOAT16)),
}
_CONTRADICTORY = ("fp8_block", "vllm")  # these tables contradict their neighbours: no truth to compare with
# Decode: batch by length. Prefill: batch by new tokens.
_DECODE = query(
    tokens=np.array([1, 4, 16, 64, 256])[:, None],
    batch=np.array([1, 4, 16, 64, 256])[:, None],
    length=np.array([[1000, 4000]]),
)
_NEW = np.array([500, 1000, 4000, 8000])
_PREFILL = query(tokens=_NEW, batch=1, length=_NEW)


class Compared(NamedTuple):
    """One step of one model, for several batches or lengths."""

    what: str  # "decode QWEN3_32B"
    gpus: int  # of the worker
    estimated: Floats  # (points,), ms
    measured: Floats


def steps(system: System, backend: Backend, tables: Tables, curves: Efficiency) -> Iterator[Compared]:
    """Yield every step that the tables can answer for."""
    truth, guess = Measured(system, tables), Analytic(system, backend, curves)
    for name, (splits, formats) in MODELS.items():
        for split, quantization in product(splits, formats):
            if (quantization.gemm, backend) == _CONTRADICTORY:
                continue
            graph = _graph(name, split, quantization, system, backend)
            if graph is not None:
                yield from _compared((name, split.gpus), graph, truth, guess)


def _graph(
    name: str, split: Parallel, quantization: Quantization, system: System, backend: Backend
) -> Graph | None:
    try:
        return build_graph(find_model(name), split, quantization, system=system, backend=backend)
    except AegisError:  # this split is not for this model or engine
        return None


def _compared(what: tuple[str, int], graph: Graph, truth: Measured, guess: Analytic) -> Iterator[Compared]:
    name, gpus = what
    for phase, operations, at in (
        ("decode", graph.generation, _DECODE),
        ("prefill", graph.context, _PREFILL),
    ):
        try:
            measured, estimated = total(operations, truth, at), total(operations, guess, at)
        except NoData:
            continue
        yield Compared(f"{phase} {name}", gpus, np.ravel(estimated), np.ravel(measured))
