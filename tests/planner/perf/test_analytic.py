"""Systems without tables: limits, growth, and the error that is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.planner.operations import (
    AllReduce,
    Collective,
    ContextAttention,
    ContextMla,
    Gemm,
    GenerationAttention,
    GenerationMla,
    Leaf,
    Measured,
    Memory,
    MlaBmm,
    Moe,
    NoData,
    PointToPoint,
    query,
)
from aegis.planner.perf.analytic import Analytic
from aegis.planner.perf.efficiency import efficiency, errors, family
from aegis.planner.perf.sol import SpeedOfLight
from aegis.planner.systems import load_system, system_names

ESTIMATED = [name for name in system_names() if load_system(name).estimated]
BATCHES = 2 ** np.arange(11)

GEMM = Gemm(name="gemm", n=4096, k=4096, quant="bfloat16")
CONTEXT = ContextAttention(
    name="context_attention", heads=32, kv_heads=8, head_size=128, kv_cache="bfloat16", fmha="bfloat16"
)
DECODE = GenerationAttention(
    name="generation_attention", heads=32, kv_heads=8, head_size=128, kv_cache="bfloat16"
)
EXPERTS = Moe(
    name="moe",
    hidden=7168,
    inter=2048,
    topk=8,
    experts=256,
    moe_tp=1,
    moe_ep=8,
    attention_dp=1,
    quant="bfloat16",
    distribution="power_law_1.01",
)
OPERATIONS: list[Leaf] = [
    GEMM,
    CONTEXT,
    DECODE,
    EXPERTS,
    Memory(name="norm", bytes_per_token=8192),
    ContextMla(name="context_mla", heads=16, kv_cache="bfloat16", fmha="bfloat16"),
    GenerationMla(name="generation_mla", heads=16, kv_cache="bfloat16"),
    MlaBmm(name="bmm", heads=16, quant="bfloat16", stage="pre"),
    AllReduce(name="all_reduce", gpus=4, width=4096),
    Collective(name="all_gather", kind="all_gather", gpus=4, width=4096),
    PointToPoint(name="p2p", bytes_per_token=8192),
]


def test_there_are_the_systems_that_nobody_has_tables_for() -> None:
    assert set(ESTIMATED) >= {
        *("mi250x", "pvc_tile", "a40", "a100_40", "mi300x", "gh200", "h100_pcie", "a100_pcie", "a30", "l4"),
        "h20",
    }


@pytest.mark.parametrize("name", ESTIMATED)
def test_every_estimated_system_says_where_its_facts_come_from_and_how_far_it_may_be_off(name: str) -> None:
    system = load_system(name)
    assert system.source
    assert system.uncertainty > 0.1
    (note,) = Analytic(system, "vllm").notes
    assert f"+-{system.uncertainty:.0%}" in note
    assert ("slow links" in note) == (system.intra_node_bandwidth < 1e11)


@pytest.mark.parametrize("name", ESTIMATED)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_an_operation_is_no_faster_than_light_and_grows_with_the_batch(name: str, operation: Leaf) -> None:
    system = load_system(name)
    at = query(tokens=BATCHES, batch=BATCHES, length=1024)
    time = Analytic(system, "vllm").latency(operation, at)
    light = SpeedOfLight(system).latency(operation, at)
    assert time.shape == BATCHES.shape
    assert (time > light * 0.5).all()  # the formulas count some traffic differently
    assert (time < 60 * light + 1).all()
    assert (time[1:] > time[:-1] * 0.95).all()


@given(
    n=st.integers(256, 65536),
    k=st.integers(256, 65536),
    m=st.integers(1, 32768),
    name=st.sampled_from(ESTIMATED),
)
def test_a_product_never_exceeds_the_peak_of_the_system(n: int, k: int, m: int, name: str) -> None:
    system = load_system(name)
    gemm = Gemm(name="gemm", n=n, k=k, quant="bfloat16")
    time = Analytic(system, "vllm").latency(gemm, query(tokens=m, batch=1, length=1))
    assert 2.0 * m * n * k / (time.item() / 1000) <= system.flops["bfloat16"]


def test_arrays_are_what_single_numbers_are() -> None:
    performance = Analytic(load_system("a40"), "trtllm")
    lengths = np.array([[100, 1000]])
    many = performance.latency(DECODE, query(tokens=BATCHES[:, None], batch=BATCHES[:, None], length=lengths))
    assert many.shape == (11, 2)
    one = performance.latency(DECODE, query(tokens=16, batch=16, length=1000))
    assert one.item() == pytest.approx(many[4, 1])


def test_cached_tokens_save_their_part_of_the_scores() -> None:
    performance = Analytic(load_system("a40"), "trtllm")
    whole = performance.latency(CONTEXT, query(tokens=4000, batch=1, length=4000)).item()
    half = performance.latency(CONTEXT, query(tokens=2000, batch=1, length=2000, prefix=2000)).item()
    assert half / whole == pytest.approx(0.75, abs=0.01)


def test_more_nodes_make_a_collective_slower() -> None:
    performance = Analytic(load_system("a100_40"), "vllm")
    at = query(tokens=4096, batch=1, length=4096)
    near, far, farther = (
        performance.latency(AllReduce(name="all_reduce", gpus=gpus, width=8192), at).item()
        for gpus in (4, 8, 16)
    )
    assert near * 5 < far < farther
    assert performance.latency(AllReduce(name="all_reduce", gpus=1, width=8192), at).item() == 0


def test_a_published_measurement_is_taken_where_there_is_one() -> None:
    system = load_system("mi300x")
    time = Analytic(system, "vllm").latency(
        Gemm(name="gemm", n=8192, k=8192, quant="bfloat16"), query(tokens=8192, batch=1, length=1)
    )
    assert 2 * 8192**3 / time.item() * 1000 == pytest.approx(708e12, rel=0.2)


def test_a_format_that_the_hardware_lacks_is_no_data() -> None:
    with pytest.raises(NoData, match="a40 does not compute in fp8"):
        Analytic(load_system("a40"), "vllm").latency(
            Gemm(name="gemm", n=4096, k=4096, quant="fp8"), query(tokens=1, batch=1, length=1)
        )


def test_what_was_only_measured_as_one_piece_is_no_data() -> None:
    with pytest.raises(NoData, match="cannot be estimated"):
        Analytic(load_system("a40"), "vllm").latency(
            Measured(name="mamba", table="mamba2", key=(), phase="context"),
            query(tokens=1, batch=1, length=1),
        )


def test_a_format_without_curve_of_an_engine_takes_that_of_another() -> None:
    system, at = load_system("a40"), query(tokens=16, batch=16, length=1)
    int4 = Gemm(name="gemm", n=4096, k=4096, quant="int4_wo")
    assert (Analytic(system, "vllm").latency(int4, at) == Analytic(system, "trtllm").latency(int4, at)).all()


def test_the_errors_that_were_held_out_are_told_for_steps_and_operations() -> None:
    known, strange = (errors(efficiency(), family_known=each) for each in (True, False))
    names = {each.what for each in known}
    assert {"gemm", "moe", "decode LLAMA3.1_8B", "prefill DEEPSEEK_V3", "steps on 1 GPU"} <= names
    of = {each.what: each for each in strange}["steps on 1 GPU"]
    assert of.systems == 4
    assert 0.05 < of.median < of.bound < 0.4


def test_gpus_of_one_kind_are_one_family() -> None:
    assert family(load_system("h20")) == family(load_system("h200_sxm")) == "hopper"
    assert family(load_system("pvc_tile")) == family(load_system("b60")) == "intel"
    assert family(load_system("mi300x")) == "amd"
