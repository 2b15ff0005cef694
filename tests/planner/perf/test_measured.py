"""Latencies from tables: against recorded answers, and what the rules say at their edges."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from msgspec.structs import replace

from aegis.planner.operations import (
    AllReduce,
    Collective,
    ContextAttention,
    ContextMla,
    Gemm,
    GenerationAttention,
    Memory,
    MlaBmm,
    MlaModule,
    Moe,
    NoData,
    PointToPoint,
    query,
)
from aegis.planner.perf.measured import Measured
from aegis.planner.systems import load_system
from aegis.planner.tables.slices import Slice
from aegis.planner.tables.store import open_tables, read_tables

from .recorded import EXTRACT, of_mode, operation_of, query_of

if TYPE_CHECKING:
    from aegis.planner.operations import Leaf
    from aegis.planner.problem import DatabaseMode
    from aegis.planner.tables.slices import Key, Tables

    Rows: TypeAlias = dict[tuple[str, Key], list[tuple[float, ...]]]

ATTENTION = GenerationAttention(name="attention", heads=8, kv_heads=1, head_size=128, kv_cache="fp8")
PREFILL = ContextAttention(
    name="attention", heads=8, kv_heads=1, head_size=128, kv_cache="fp8", fmha="bfloat16"
)
GEMM = Gemm(name="gemm", n=5120, k=5120, quant="fp8_block")
EXPERTS = Moe(
    name="experts",
    hidden=4096,
    inter=1536,
    topk=8,
    experts=128,
    moe_tp=1,
    moe_ep=4,
    attention_dp=1,
    quant="fp8_block",
    distribution="power_law_1.2",
)


@cache
def shipped(system: str, backend: str, mode: DatabaseMode = "SILICON") -> Measured:
    return Measured(load_system(system), open_tables(system, backend), mode)


@cache
def h200(mode: DatabaseMode = "SILICON") -> Measured:
    return shipped("h200_sxm", "trtllm", mode)


def errors(mode: DatabaseMode) -> dict[str, list[float]]:
    """Relative errors of every recorded answer, by kind of operation."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in of_mode(mode):
        measured = shipped(record["system"], record["backend"], mode)
        value = float(measured.latency(operation_of(record), query_of(record)))
        want = record["ms"]
        found[record["kind"]].append(abs(value / want - 1) if want else abs(value))
    return found


@pytest.mark.parametrize(("mode", "near"), [("SILICON", 3e-4), ("EMPIRICAL", 3e-4), ("SOL", 1e-12)], ids=str)
def test_recorded_answers_are_met(mode: DatabaseMode, near: float) -> None:
    for kind, each in errors(mode).items():
        met = sum(error < near for error in each) / len(each)
        assert met >= (0.9 if (kind, mode) == ("Moe", "EMPIRICAL") else 0.98), (
            f"{kind}: {met:.1%} of {len(each)}"
        )


def test_on_a_table_without_loss_they_are_met_to_nine_digits() -> None:
    measured = Measured(load_system("h200_sxm"), read_tables(EXTRACT))
    mine = [
        record
        for record in of_mode("SILICON")
        if (record["system"], record["backend"]) == ("h200_sxm", "trtllm")
    ]
    assert len(mine) == 70
    for record in mine:
        value = float(measured.latency(operation_of(record), query_of(record)))
        assert value == pytest.approx(record["ms"], rel=1e-9), record


MANY: list[Leaf] = [
    GEMM,
    replace(GEMM, n=5000, k=5400),
    replace(GEMM, sampled=True),
    replace(GEMM, token_split=4),
    ATTENTION,
    replace(ATTENTION, heads=7),
    PREFILL,
    replace(PREFILL, heads=7, cp=4),
    EXPERTS,
    AllReduce(name="all-reduce", gpus=4, width=5120),
    Collective(name="gather", kind="all_gather", gpus=8, width=100.5),
    Memory(name="norm", bytes_per_token=100),
    PointToPoint(name="send", bytes_per_token=10240),
]


@pytest.mark.parametrize("operation", MANY, ids=lambda operation: type(operation).__name__)
@pytest.mark.parametrize("mode", ["SILICON", "SOL", "EMPIRICAL"])
def test_many_points_are_answered_as_each_by_itself(operation: Leaf, mode: DatabaseMode) -> None:
    rng = np.random.default_rng(1)
    batch = np.append(rng.integers(1, 600, 6), 4096)[:, None]
    length, prefix = np.append(rng.integers(1, 40_000, 4), 300_000), np.array([0, 7, 0, 1000, 0])
    at = query(tokens=batch * length % 20_000 + 1, batch=batch, length=length, prefix=prefix)
    whole = h200(mode).latency(operation, at)
    assert whole.shape == (7, 5)
    assert whole.dtype == np.float64
    for index in np.ndindex(whole.shape):
        one = type(at)(*(np.broadcast_to(axis, whole.shape)[index] for axis in at))
        assert whole[index] == pytest.approx(float(h200(mode).latency(operation, one)), rel=1e-9)
        assert whole[index] > 0


def test_an_unknown_size_takes_its_neighbours_utilisation_and_far_ones_have_no_data() -> None:
    at = query(tokens=1000, batch=1, length=1000)
    near = h200().latency(replace(GEMM, n=5000), at) / h200().latency(GEMM, at)
    assert float(near) == pytest.approx(5000 / 5120, rel=0.05)
    with pytest.raises(NoData, match="n = 16, k = 16"):
        h200().latency(replace(GEMM, n=16, k=16), at)


def test_a_format_that_was_not_measured_has_no_data_unless_it_may_be_estimated() -> None:
    at = query(tokens=1000, batch=1, length=1000)
    strange = replace(GEMM, quant="int4_wo")
    with pytest.raises(NoData, match=r"gemm: no int4_wo in the tables of trtllm .* on h200_sxm"):
        h200().latency(strange, at)
    assert 0.01 < float(h200("HYBRID").latency(strange, at)) < 10
    assert h200("HYBRID").latency(GEMM, at) == h200().latency(GEMM, at)


def test_hybrid_borrows_from_other_head_sizes_experts_and_formats() -> None:
    at = query(tokens=1000, batch=4, length=2000)
    odd = replace(ATTENTION, head_size=96)
    with pytest.raises(NoData):
        h200().latency(odd, at)
    part = float(h200("HYBRID").latency(odd, at) / h200("HYBRID").latency(ATTENTION, at))
    assert 0.5 < part < 1.01
    # A slimmer relative of measured experts, and a format that nobody measured here.
    for other in (replace(EXPERTS, inter=1500), replace(EXPERTS, quant="int4_wo")):
        with pytest.raises(NoData):
            h200().latency(other, at)
        assert 0.05 < float(h200("HYBRID").latency(other, at) / h200().latency(EXPERTS, at)) < 20


def test_a_format_that_a_gpu_does_not_compute_in_has_no_data() -> None:
    at = query(tokens=1000, batch=1, length=1000)
    for mode in ("SILICON", "SOL", "EMPIRICAL", "HYBRID"):
        with pytest.raises(NoData):
            shipped("a100_sxm", "trtllm", mode).latency(replace(GEMM, quant="fp8"), at)


def test_static_fp8_is_dynamic_fp8_less_the_search_for_scales_and_never_faster_than_light() -> None:
    at = query(tokens=np.array([1, 16, 4096, 200_000]), batch=1, length=1)
    dynamic = h200().latency(replace(GEMM, quant="fp8"), at)
    static = h200().latency(replace(GEMM, quant="fp8_static"), at)
    passed_on = h200().latency(replace(GEMM, quant="fp8_static", quantized_input=True), at)
    light = h200("SOL").latency(replace(GEMM, quant="fp8"), at)
    assert (light <= passed_on).all()
    assert (passed_on <= static).all()
    assert (static <= dynamic).all()
    assert (static < dynamic).any()


def test_lanes_are_tried_in_their_order() -> None:
    tables = open_tables("b200_sxm", "sglang")
    lanes = {str(key[0]) for key in tables.keys("generation_attention")} - {"default"}
    at = query(tokens=8, batch=8, length=3000)
    b200 = shipped("b200_sxm", "sglang")
    values = {}
    for lane in sorted(lanes):
        operation = replace(ATTENTION, kv_cache="bfloat16", lanes=(lane,))
        try:
            values[lane] = float(b200.latency(operation, at))
        except NoData:
            continue
    assert values
    for lane, value in values.items():
        order = ("no-such-kernel", lane, *values)
        operation = replace(ATTENTION, kv_cache="bfloat16", lanes=order)
        assert float(b200.latency(operation, at)) == value
    with pytest.raises(NoData, match="no-such-kernel"):
        b200.latency(replace(ATTENTION, lanes=("no-such-kernel",)), at)


def test_a_cached_prefix_leaves_its_part_of_the_scores_out() -> None:
    whole = float(h200().latency(PREFILL, query(tokens=4000, batch=1, length=4000)))
    extras = float(h200().latency(PREFILL, query(tokens=0, batch=1, length=0, prefix=4000)))
    half = float(h200().latency(PREFILL, query(tokens=2000, batch=1, length=2000, prefix=2000)))
    assert half - extras == pytest.approx((whole - extras) * 0.75, rel=1e-9)


def test_context_parallel_gpus_take_a_piece_from_either_end() -> None:
    def kernel(new: int, before: int) -> float:
        op = replace(mla, cp=1)
        return float(h200().latency(op, query(tokens=new, batch=2, length=new, prefix=before)))

    mla = ContextMla(name="mla", heads=16, kv_cache="bfloat16", fmha="bfloat16", cp=2)
    got = float(h200().latency(mla, query(tokens=4001, batch=2, length=4001, prefix=100)))
    assert got == pytest.approx(kernel(1001, 100) + kernel(1001, 100 + 4001 - 1001), rel=1e-12)


def test_what_surrounds_attention_counts_once_or_for_each_token() -> None:
    tables, system = open_tables("h200_sxm", "trtllm"), load_system("h200_sxm")
    each = Measured(system, tables, extras_per_token=True)
    one, many = (query(tokens=n, batch=1, length=n) for n in (1, 8192))
    assert each.latency(PREFILL, one) == h200().latency(PREFILL, one)
    normed = replace(PREFILL, qk_norm=True)
    constant = float(h200().latency(normed, many) - h200().latency(PREFILL, many))
    growing = float(each.latency(normed, many) - each.latency(PREFILL, many))
    assert constant == pytest.approx(1.1 * 8 * 3e-3, rel=0.01)  # eight kernels of 3 us
    moved = 1.1 * 4 * (2 * 8 * 128 + 2 * 128) * 8192 / (0.8 * system.memory_bandwidth) * 1000
    assert growing == pytest.approx(1.1 * 8 * 3e-3 + moved, rel=1e-6)


def test_experts_see_the_tokens_of_all_attention_groups() -> None:
    at = query(tokens=512, batch=512, length=1)
    four = h200().latency(replace(EXPERTS, attention_dp=4), at)
    assert four == h200().latency(EXPERTS, query(tokens=2048, batch=1, length=1))
    with pytest.raises(NoData, match="split 3 x 1"):
        h200().latency(replace(EXPERTS, moe_tp=3, moe_ep=1), at)


class Invented:
    """Tables of a few points."""

    system, backend, version, lossless = "h200_sxm", "trtllm", "0", True

    def __init__(self, slices: Rows) -> None:
        self.slices = slices

    def keys(self, operation: str) -> list[Key]:
        return [key for name, key in self.slices if name == operation]

    def load(self, operation: str, key: Key) -> Slice | None:
        rows = self.slices.get((operation, key))
        if rows is None:
            return None
        *axes, latency = (np.array(column) for column in zip(*rows, strict=True))
        return Slice(tuple(axis.astype(np.int64) for axis in axes), latency.astype(float))


def invented(slices: Rows, **changes: Any) -> Measured:
    tables: Tables = Invented(slices)
    return Measured(replace(load_system("b200_sxm"), **changes), tables)


SITE = (8, 128, 4096, 1536, 1, 4)


def test_a_distribution_that_was_not_measured_is_taken_as_uniform() -> None:
    uniform = invented({("moe", ("default", "nvfp4", "uniform")): [(*SITE, 1, 1.0), (*SITE, 1000, 2.0)]})
    other = replace(EXPERTS, quant="nvfp4")
    assert float(uniform.latency(other, query(tokens=1000, batch=1, length=1))) == 2.0


def test_few_tokens_of_nvfp4_experts_have_kernels_of_their_own() -> None:
    rows: Rows = {
        ("moe", ("default", "nvfp4", "power_law_1.2")): [(*SITE, 1, 1.0), (*SITE, 1000, 2.0)],
        ("moe", ("min_latency", "nvfp4", "power_law_1.2")): [(*SITE, 1, 0.1), (*SITE, 128, 0.2)],
    }
    other = replace(EXPERTS, quant="nvfp4", attention_dp=2)
    at = query(tokens=np.array([64, 65, 500]), batch=1, length=1)
    got = invented(rows).latency(other, at)
    assert got == pytest.approx([0.2, 1 + 129 / 999, 2.0], rel=1e-9)
    assert invented(rows).latency(replace(other, gated=False), at)[0] == pytest.approx(1 + 127 / 999)


def test_collectives_of_more_gpus_than_were_measured_scale_by_share_and_link() -> None:
    links = {"gpus_per_node": 4, "gpus_per_rack": None}
    rows: Rows = {
        ("custom_allreduce", ()): [(4, 1000, 1.0), (4, 2000, 2.0)],
        ("nccl", ("all_gather",)): [(2, 1000, 0.5), (4, 1000, 1.0), (4, 2000, 2.0)],
    }
    here = invented(rows, **links, intra_node_bandwidth=8e11, inter_node_bandwidth=1e11)
    at = query(tokens=np.array([1, 1000, 1500, 4000]), batch=1, length=1)
    farther = (7 / 8) / (3 / 4) * 8
    for eight in (
        AllReduce(name="all-reduce", gpus=8, width=1),
        Collective(name="gather", kind="all_gather", gpus=8, width=1),
    ):
        assert here.latency(eight, at) == pytest.approx(np.array([0.001, 1, 1.5, 4]) * farther)
        assert here.latency(replace(eight, gpus=1), at).tolist() == [0, 0, 0, 0]
    with pytest.raises(NoData, match="2 GPUs"):
        here.latency(AllReduce(name="all-reduce", gpus=2, width=1), at)


def test_an_all_reduce_over_nodes_that_was_measured_is_not_scaled() -> None:
    rows: Rows = {("custom_allreduce", ()): [(4, 1000, 1.0), (8, 1000, 1.5)]}
    at, eight = query(tokens=[1000], batch=1, length=1), AllReduce(name="all-reduce", gpus=8, width=1)
    nodes = {"gpus_per_node": 4, "gpus_per_rack": None, "intra_node_bandwidth": 9e11}
    assert invented(rows, **nodes, inter_node_bandwidth=9e11).latency(eight, at)[0] == 1.5
    slower = invented(rows, **nodes, inter_node_bandwidth=3e11).latency(eight, at)
    assert slower[0] == pytest.approx((7 / 8) / (3 / 4) * 3)


def test_attention_blocks_are_taken_from_the_model_with_the_nearest_smaller_number_of_heads() -> None:
    rows: Rows = {
        ("mla_context_module", ("bfloat16", "fp8", "fp8_block", heads)): [(16, 1000, 1, ms)]
        for heads, ms in ((64, 1.0), (128, 2.0))
    }
    block = MlaModule(
        name="block",
        phase="context",
        heads=16,
        native_heads=128,
        kv_cache="fp8",
        fmha="bfloat16",
        gemm="fp8_block",
    )
    at = query(tokens=1000, batch=1, length=1000)
    for native, ms in ((128, 2.0), (100, 1.0), (64, 1.0), (32, 1.0)):
        got = float(invented(rows).latency(replace(block, native_heads=native), at))
        assert got == pytest.approx(ms)
    with pytest.raises(NoData, match="block"):
        invented(rows).latency(replace(block, phase="generation"), at)


def test_heads_that_are_no_power_of_two_take_their_part_of_the_next() -> None:
    rows: Rows = {("mla_bmm", ("bfloat16", "pre")): [(16, 1, 1.0), (16, 9, 2.0)]}
    into = MlaBmm(name="into", heads=12, quant="fp8", stage="pre")
    assert float(invented(rows).latency(into, query(tokens=9, batch=9, length=1))) == 1.5
    with pytest.raises(NoData, match="33 heads"):
        invented(rows).latency(replace(into, heads=33), query(tokens=9, batch=9, length=1))


def test_of_sizes_that_are_equally_near_those_count_that_were_measured_first() -> None:
    # The first and the last lie at the same distance from (2000, 2000); only one of them is among the nearest four.
    sizes = [(1000, 1000), (1000, 2000), (2000, 1000), (4000, 2000), (4000, 4000)]
    table: Rows = {("gemm", ("bfloat16",)): [(*size, 8, 1.0 + place) for place, size in enumerate(sizes)]}

    def answer(places: tuple[int, ...]) -> float:
        order: Rows = {("gemm_order", ("bfloat16",)): [(*s, p) for s, p in zip(sizes, places, strict=False)]}
        odd = Gemm(name="odd", n=2000, k=2000, quant="bfloat16")
        tables = table | order if places else table
        return float(invented(tables).latency(odd, query(tokens=8, batch=8, length=1)))

    smallest_first, largest_first = answer((1, 2, 3, 4, 5)), answer((5, 4, 3, 2, 1))
    assert smallest_first != pytest.approx(largest_first, rel=1e-3)
    assert answer(()) == largest_first


def test_a_plan_says_which_tables_it_rests_on_contradict_their_neighbours() -> None:
    measured = Measured(load_system("b200_sxm"), open_tables("b200_sxm", "vllm"))
    at = query(tokens=64, batch=64, length=1)
    measured.latency(replace(GEMM, quant="bfloat16"), at)
    assert measured.notes == ()
    measured.latency(GEMM, at)
    assert len(measured.notes) == 1
    assert "gemm (fp8_block) is slower than with" in measured.notes[0]
