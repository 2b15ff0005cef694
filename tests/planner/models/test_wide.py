"""Wide experts: which were measured, and what a step of them is made of. Figures are aiconfigurator 0.12.0's, in ms."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

from aegis.planner.lanes import lanes_of
from aegis.planner.models.build import build_graph
from aegis.planner.models.limits import SplitError
from aegis.planner.models.quantize import explain_quantization, has_in
from aegis.planner.models.resolve import find_model
from aegis.planner.models.wide import transports_of, travel_format, wide_experts
from aegis.planner.operations import ExpertExchange, query
from aegis.planner.perf.evaluate import evaluate
from aegis.planner.perf.measured import Measured
from aegis.planner.problem import Mtp, Parallel, WideExperts
from aegis.planner.systems import load_system
from aegis.planner.tables.store import open_tables

if TYPE_CHECKING:
    from aegis.planner.models.graph import Graph
    from aegis.planner.models.wide import Stage
    from aegis.planner.operations import Phase
    from aegis.planner.problem import Backend

V3 = "deepseek-ai/DeepSeek-V3"
SPARSE = "deepseek-ai/DeepSeek-V3.2"
MINIMAX = "MiniMaxAI/MiniMax-M2.5"


@cache
def measured(system: str, backend: Backend) -> Measured:
    return Measured(load_system(system), open_tables(system, backend))


def wide(model: str, system: str, backend: Backend, quant: str) -> tuple[WideExperts, ...]:
    return wide_experts(
        find_model(model), quant, tables=open_tables(system, backend), system=load_system(system)
    )


def graph(model: str, system: str, backend: Backend, split: Parallel, drafted: int = 0) -> Graph:
    shape, hardware, tables = find_model(model), load_system(system), open_tables(system, backend)
    formats, _ = explain_quantization(
        shape, system=hardware, backend=backend, rules="current", has=has_in(tables), role="agg"
    )
    return build_graph(
        shape,
        split,
        formats,
        system=hardware,
        backend=backend,
        mtp=Mtp(drafted=drafted),
        lanes=lanes_of(tables, hardware),
        wide=wide_experts(shape, formats.moe, tables=tables, system=hardware),
    )


@pytest.mark.parametrize(
    ("model", "system", "backend", "quant", "prefill"),
    [
        (V3, "h200_sxm", "sglang", "fp8_block", dict.fromkeys((8, 16, 32, 64, 128, 256), "deepep_ht")),
        (V3, "h200_sxm", "trtllm", "fp8_block", dict.fromkeys((8, 16, 32, 64, 128, 256), "trtllm_deepep_ht")),
        # Experts on one node of 8 were not measured there: only those on more.
        (V3, "b200_sxm", "sglang", "fp8_block", dict.fromkeys((16, 32, 64, 128, 256), "deepep_ht")),
        (V3, "h200_sxm", "sglang", "nvfp4", {}),
        (V3, "l40s", "sglang", "fp8_block", {}),
        ("Qwen/Qwen3-235B-A22B-FP8", "h200_sxm", "trtllm", "fp8_block", {}),
        ("Qwen/Qwen3-32B", "h200_sxm", "trtllm", "fp8_block", {}),
        ("openai/gpt-oss-120b", "h200_sxm", "trtllm", "w4a16_mxfp4", {}),
    ],
)
def test_experts_are_wide_where_both_phases_were_measured(
    model: str, system: str, backend: Backend, quant: str, prefill: dict[int, str]
) -> None:
    assert {each.gpus: each.prefill for each in wide(model, system, backend, quant)} == prefill


def test_the_transport_that_comes_first_is_taken() -> None:
    found = {each.gpus: each for each in wide("nvidia/DeepSeek-V3.1-NVFP4", "gb200", "trtllm", "nvfp4")}
    assert (found[2].prefill, found[2].decode) == ("nvlink_two_sided", "nvlink_two_sided")
    assert (found[4].nodes, found[4].prefill, found[4].decode) == (1, "trtllm_deepep_ht", "trtllm_deepep_ll")
    assert found[16].nodes == 4


@pytest.mark.parametrize(
    ("transport", "quant", "stage", "phase", "sm_version", "name"),
    [
        ("deepep_ll", "fp8_block", "combine", "generation", 90, "default"),
        ("trtllm_deepep_ht", "fp8_block", "dispatch", "context", 90, "bfloat16"),
        ("trtllm_deepep_ll", "fp8_block", "dispatch", "generation", 90, "fp8"),
        ("trtllm_deepep_ll", "nvfp4", "dispatch", "generation", 100, "nvfp4"),
        ("trtllm_deepep_ll", "nvfp4", "combine", "generation", 100, "fp4"),
        ("trtllm_deepep_ll", "nvfp4", "combine", "generation", 90, None),
        ("nvlink_two_sided", "nvfp4", "combine", "generation", 100, "fp4"),
        ("nvlink_two_sided", "nvfp4", "combine", "context", 100, "nvfp4"),
    ],
)
def test_tokens_travel_in_the_format_that_the_engine_sends(
    *, transport: str, quant: str, stage: Stage, phase: Phase, sm_version: int, name: str | None
) -> None:
    assert travel_format(transport, quant, stage=stage, phase=phase, sm_version=sm_version) == name


def test_split_experts_are_not_wide_and_tensorrt_llm_needs_attention_dp() -> None:
    there = (WideExperts(gpus=8, nodes=1, prefill="a", decode="b"),)
    assert transports_of(Parallel(dp=8, moe_ep=8), there, "trtllm") == there[0]
    assert transports_of(Parallel(tp=8, moe_ep=8), there, "trtllm") is None
    assert transports_of(Parallel(tp=8, moe_ep=8), there, "sglang") == there[0]
    assert transports_of(Parallel(dp=16, moe_tp=2, moe_ep=8), there, "sglang") is None
    assert transports_of(Parallel(dp=4, moe_ep=4), there, "sglang") is None


def test_experts_over_nodes_need_a_measured_transport() -> None:
    split = Parallel(dp=16, moe_ep=16)
    assert graph(V3, "h200_sxm", "trtllm", split).wide
    with pytest.raises(SplitError, match="experts on 16 GPUs are on several nodes of 8: no transport"):
        graph("Qwen/Qwen3-235B-A22B-FP8", "h200_sxm", "trtllm", split)


@pytest.mark.parametrize(
    ("model", "system", "backend", "split", "drafted", "at", "name", "expected"),
    [
        (V3, "h200_sxm", "sglang", Parallel(dp=16, moe_ep=16), 0, 500, "context_moe_dispatch", 11.2394025),
        (V3, "h200_sxm", "sglang", Parallel(dp=16, moe_ep=16), 0, 500, "context_moe", 57.51451920),
        (V3, "h200_sxm", "sglang", Parallel(dp=16, moe_ep=16), 0, 100, "generation_moe", 15.50138308),
        (V3, "h200_sxm", "sglang", Parallel(dp=16, moe_ep=16), 0, 100, "generation_moe_combine", 9.2032225),
        # within a node, for it was not measured over several
        (V3, "b200_sxm", "sglang", Parallel(dp=32, moe_ep=32), 0, 500, "context_moe_dispatch", 6.79688638),
        # side by side with shared experts, kernels started early, in the layers of a drafted token too
        (
            *(V3, "h200_sxm", "trtllm", Parallel(dp=32, moe_ep=32), 1, 300),
            *("generation_moe_overlap", 80.42615872),
        ),
        # the tables of all experts
        (MINIMAX, "h200_sxm", "vllm", Parallel(dp=8, moe_ep=8), 0, 500, "context_moe", 35.22200096),
        (MINIMAX, "h200_sxm", "vllm", Parallel(dp=8, moe_ep=8), 0, 1, "context_moe_dispatch", 1.43779241),
        (SPARSE, "h200_sxm", "sglang", Parallel(dp=8, moe_ep=8), 0, 300, "generation_moe", 26.42742155),
    ],
)
def test_a_step_takes_as_long_as_was_recorded(
    *,
    model: str,
    system: str,
    backend: Backend,
    split: Parallel,
    drafted: int,
    at: int,
    name: str,
    expected: float,
) -> None:
    built = graph(model, system, backend, split, drafted)
    operation = next(each for each in (*built.context, *built.generation) if each.name == name)
    point = query(tokens=[at], batch=[at], length=[3000])
    assert evaluate(operation, measured(system, backend), point)[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "system", "backend", "split", "weights"),
    [
        (V3, "h200_sxm", "sglang", Parallel(dp=16, moe_ep=16), 49369972736),
        (V3, "h200_sxm", "trtllm", Parallel(dp=32, moe_ep=32), 39522074624),
        (V3, "h200_sxm", "vllm", Parallel(tp=2, dp=4, moe_ep=8), 97825259520),
        (MINIMAX, "h200_sxm", "vllm", Parallel(dp=8, moe_ep=8), 32142262272),
        (SPARSE, "h200_sxm", "sglang", Parallel(dp=8, moe_ep=8), 100861870080),
    ],
)
def test_every_gpu_has_the_shared_experts_as_a_whole(
    model: str, system: str, backend: Backend, split: Parallel, weights: int
) -> None:
    assert graph(model, system, backend, split).weights == pytest.approx(weights, rel=1e-9)


def test_sglang_gathers_prompts_before_attention_that_is_split() -> None:
    one = graph(V3, "h200_sxm", "sglang", Parallel(dp=8, moe_ep=8))
    two = graph(V3, "h200_sxm", "sglang", Parallel(tp=2, dp=4, moe_ep=8))
    more = {each.name for each in two.context} - {each.name for each in one.context}
    assert more == {"context_tp_all_gather", "context_tp_reduce_scatter"}
    shared = [each.attention_split for each in two.context if isinstance(each, ExpertExchange)]
    assert shared == [2, 2]
    assert all(each.attention_split == 1 for each in two.generation if isinstance(each, ExpertExchange))
