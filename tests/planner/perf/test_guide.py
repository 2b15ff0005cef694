"""Single operations under the guide's rules: against what the tool of its time answered on the same tables."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

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
from aegis.planner.perf.guide import GuideTables
from aegis.planner.systems import load_system
from aegis.planner.tables.slices import Slice
from aegis.planner.tables.store import open_tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.planner.operations import Query
    from aegis.planner.tables.slices import Key

RECORDED = Path(__file__).parents[2] / "fixtures" / "aiconfigurator" / "guide-ops-0.3.0.json.gz"
ONE = query(tokens=64, batch=1, length=64)


@cache
def tables(system: str = "h200_sxm", *, exact: bool = True) -> GuideTables:
    return GuideTables(
        load_system(system, era="guide"), open_tables(system, "trtllm", era="guide"), exact=exact
    )


@cache
def recorded() -> list[dict[str, Any]]:
    with gzip.open(RECORDED) as file:
        return list(json.load(file)["operations"])


KINDS: dict[str, Callable[[dict[str, Any]], Leaf]] = {
    "gemm": lambda r: Gemm(name="gemm", n=r["n"], k=r["k"], quant=r["quant"]),
    "ctx": lambda r: ContextAttention(
        name="attention", head_size=128, **{key: r[key] for key in ("heads", "kv_heads", "kv_cache", "fmha")}
    ),
    "gen": lambda r: GenerationAttention(
        name="attention", head_size=128, **{key: r[key] for key in ("heads", "kv_heads", "kv_cache")}
    ),
    "cmla": lambda r: ContextMla(name="mla", **{key: r[key] for key in ("heads", "kv_cache", "fmha")}),
    "gmla": lambda r: GenerationMla(name="mla", heads=r["heads"], kv_cache=r["kv_cache"]),
    "bmm": lambda r: MlaBmm(
        name="bmm", heads=r["heads"], quant=r["quant"], stage="pre" if r["pre"] else "post"
    ),
    "ar": lambda r: AllReduce(name="sum", gpus=r["gpus"], width=1.0),
    "nccl": lambda r: Collective(name="nccl", kind=r["collective"], gpus=r["gpus"], width=1.0),
    "moe": lambda r: Moe(
        name="experts",
        attention_dp=1,
        **{
            key: r[key]
            for key in ("hidden", "inter", "topk", "experts", "moe_tp", "moe_ep", "quant", "distribution")
        },
    ),
}


def at(record: dict[str, Any]) -> Query:
    tokens = record.get("tokens", record.get("elements", 1))
    return query(tokens=tokens, batch=record.get("batch", 1), length=record.get("length", 1))


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_what_the_tool_of_that_time_answered(kind: str) -> None:
    records = [each for each in recorded() if each["kind"] == kind]
    assert records
    for record in records:
        found = float(tables().latency(KINDS[kind](record), at(record)))
        assert found == pytest.approx(record["ms"], rel=1e-9), record


def test_linear_interpolation_stays_near() -> None:
    near = tables(exact=False)
    gemms = [each for each in recorded() if each["kind"] == "gemm"]
    found = np.array([float(near.latency(KINDS["gemm"](each), at(each))) for each in gemms])
    off = np.abs(found / [each["ms"] for each in gemms] - 1)
    assert np.median(off) < 1e-3
    assert off.max() < 0.03


def test_arrays_are_answered_as_their_elements() -> None:
    tokens, batch, length = np.arange(1, 13), np.arange(1, 13) ** 2, np.arange(40, 640, 50)
    together = query(tokens=tokens, batch=batch, length=length)
    for operation in (
        Gemm(name="gemm", n=5120, k=3100, quant="fp8_block"),
        ContextAttention(name="attention", heads=20, kv_heads=4, head_size=128, kv_cache="fp8", fmha="fp8"),
        GenerationAttention(name="attention", heads=20, kv_heads=4, head_size=128, kv_cache="fp8"),
        AllReduce(name="sum", gpus=4, width=5120.0),
    ):
        for exact in (True, False):
            values = tables(exact=exact).latency(operation, together)
            alone = [
                float(tables(exact=exact).latency(operation, query(tokens=t, batch=b, length=s)))
                for t, b, s in zip(tokens, batch, length, strict=True)
            ]
            assert values == pytest.approx(alone, rel=1e-12)


def test_answers_have_the_shape_of_the_query() -> None:
    point = query(tokens=np.arange(1, 4)[:, None], batch=np.arange(1, 3), length=100)
    for operation in (
        Memory(name="norm", bytes_per_token=4096.0),
        PointToPoint(name="p2p", bytes_per_token=4096.0),
        Gemm(name="gemm", n=5120, k=5120, quant="fp8"),
        Gemm(name="logits", n=5120, k=5120, quant="fp8", sampled=True),
        AllReduce(name="sum", gpus=1, width=5120.0),
        Collective(name="gather", kind="all_gather", gpus=1, width=5120.0),
    ):
        assert tables().latency(operation, point).shape == (3, 2)


def test_what_no_table_is_needed_for_follows_from_the_links() -> None:
    system = tables().system
    memory = float(tables().latency(Memory(name="norm", bytes_per_token=1e6), ONE))
    assert memory == pytest.approx(1e3 * (64e6 / (0.8 * system.memory_bandwidth) + 3e-6))
    sent = float(tables().latency(PointToPoint(name="p2p", bytes_per_token=1e6), ONE))
    assert sent == pytest.approx(1e3 * (64e6 / system.inter_node_bandwidth + 1e-5))


def test_logits_see_only_what_is_sampled() -> None:
    logits = Gemm(name="logits", n=5120, k=5120, quant="fp8", sampled=True)
    whole = Gemm(name="gemm", n=5120, k=5120, quant="fp8")
    few = query(tokens=4096, batch=8, length=512)
    assert float(tables().latency(logits, few)) == float(
        tables().latency(whole, query(tokens=8, batch=8, length=1))
    )


def test_cached_tokens_are_not_read_again() -> None:
    attention = ContextAttention(
        name="attention", heads=32, kv_heads=8, head_size=128, kv_cache="fp8", fmha="fp8"
    )
    whole = float(tables().latency(attention, query(tokens=1, batch=2, length=2000)))
    rest = float(tables().latency(attention, query(tokens=1, batch=2, length=500, prefix=1500)))
    assert rest == pytest.approx(whole * (1 - 0.75**2))


def test_experts_see_the_tokens_of_all_attention_groups() -> None:
    wide, narrow = (
        Moe(
            name="experts",
            hidden=7168,
            inter=2048,
            topk=8,
            experts=256,
            moe_tp=1,
            moe_ep=8,
            attention_dp=dp,
            quant="fp8_block",
            distribution="power_law_1.01",
        )
        for dp in (8, 1)
    )
    assert float(tables().latency(wide, query(tokens=100, batch=1, length=1))) == float(
        tables().latency(narrow, query(tokens=800, batch=1, length=1))
    )


def test_few_tokens_take_the_kernels_made_for_them() -> None:
    experts = Moe(
        name="experts",
        hidden=7168,
        inter=2048,
        topk=8,
        experts=256,
        moe_tp=1,
        moe_ep=8,
        attention_dp=1,
        quant="nvfp4",
        distribution="power_law_1.01",
    )
    blackwell = tables("b200_sxm")
    few, many = blackwell.latency(experts, query(tokens=[128, 129], batch=1, length=1)).tolist()
    assert few != pytest.approx(many, rel=0.02)


class FewPoints:
    """Tables of one operation at three points."""

    system, backend, version, lossless = "here", "trtllm", "1", True

    def keys(self, operation: str) -> list[Key]:
        return [("fp8",)] if operation == "gemm" else []

    def load(self, operation: str, key: Key) -> Slice | None:
        point = np.array([32, 64, 128])
        return (
            Slice((point, point, point), np.array([1.0, 2.0, 3.0])) if key in self.keys(operation) else None
        )


def test_a_table_of_too_few_points_is_told() -> None:
    few = GuideTables(load_system("h200_sxm", era="guide"), FewPoints())
    with pytest.raises(NoData, match=r"here, trtllm 1: gemm of .* has too few points"):
        few.latency(Gemm(name="gemm", n=64, k=64, quant="fp8"), ONE)


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (Gemm(name="gemm", n=5120, k=5120, quant="nvfp4"), "gemm was not measured for (quant) = (nvfp4)"),
        (
            Gemm(name="gemm", n=999_999, k=5120, quant="fp8"),
            "from 32 to 262144 columns (gemm), not to 999999",
        ),
        (AllReduce(name="sum", gpus=3, width=1.0), "custom_allreduce was not measured for (gpus) = (3)"),
        (
            GenerationAttention(name="a", heads=2, kv_heads=1, head_size=128, kv_cache="fp8"),
            "from 4 to 128 heads (a), not to 2",
        ),
        (
            GenerationAttention(name="a", heads=8, kv_heads=8, head_size=64, kv_cache="fp8"),
            "generation_attention was not measured",
        ),
        (
            Measured(name="mamba", table="mamba2", key=(), phase="context"),
            "mamba: the tables of the guide's time have no such operation",
        ),
    ],
)
def test_what_was_not_measured_is_told(operation: Leaf, said: str) -> None:
    with pytest.raises(NoData) as caught:
        tables().latency(operation, ONE)
    assert said in caught.value.message
    assert caught.value.hint
