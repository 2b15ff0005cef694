"""The speed of light."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from aegis.planner.operations import (
    Collective,
    ContextAttention,
    Gemm,
    GenerationAttention,
    Measured,
    NoData,
    query,
)
from aegis.planner.perf.sol import SpeedOfLight, zigzag
from aegis.planner.systems import load_system

H200 = load_system("h200_sxm")
LIGHT = SpeedOfLight(H200)


def test_a_large_product_is_bound_by_compute_and_a_small_one_by_memory() -> None:
    large = float(LIGHT.gemm("bfloat16", 8192, 8192, 8192))
    assert large == pytest.approx(2 * 8192**3 / H200.flops["bfloat16"] * 1000)
    small = float(LIGHT.gemm("bfloat16", 1, 8192, 8192))
    assert small == pytest.approx(2 * (2 * 8192 + 8192**2) / H200.memory_bandwidth * 1000)


def test_a_window_bounds_what_attention_reads() -> None:
    prefill = ContextAttention(name="a", heads=32, kv_heads=8, head_size=128, kv_cache="fp8", fmha="bfloat16")
    decode = GenerationAttention(name="a", heads=32, kv_heads=8, head_size=128, kv_cache="fp8")
    at = query(tokens=1, batch=1, length=100_000)
    for op in (prefill, decode):
        assert LIGHT.latency(replace(op, window=128), at) < LIGHT.latency(op, at) / 50
        assert LIGHT.latency(replace(op, window=200_000), at) == LIGHT.latency(op, at)


def test_an_all_reduce_sends_twice_what_a_gather_sends() -> None:
    at = query(tokens=100, batch=1, length=1)
    gather = Collective(name="c", kind="all_gather", gpus=4, width=1000)
    twice = LIGHT.latency(replace(gather, kind="all_reduce"), at)
    assert float(twice) == pytest.approx(2 * float(LIGHT.latency(gather, at)))
    assert float(twice) == pytest.approx(2 * 2 * 1e5 * 0.75 / H200.intra_node_bandwidth * 1000)


def test_pieces_of_context_parallelism_add_up_to_the_sequence() -> None:
    pieces: list[tuple[float, float]] = []

    def kernel(new: float, before: float) -> float:
        pieces.append((new, before))
        return new

    assert zigzag(kernel, 1000.0, 50.0, 1) == 1000  # type: ignore[arg-type, type-var]
    assert zigzag(kernel, 1000.0, 50.0, 4) == 250  # type: ignore[arg-type, type-var]
    assert pieces == [(1000, 50), (125, 50), (125, 925)]


def test_pieces_that_were_only_measured_have_no_formula() -> None:
    with pytest.raises(NoData, match="gdn"):
        LIGHT.latency(
            Measured(name="gdn", table="no_such_table", key=(), phase="context"),
            query(tokens=1, batch=1, length=1),
        )


def test_a_format_without_tensor_cores_has_no_speed_of_light() -> None:
    with pytest.raises(NoData, match="fp8"):
        SpeedOfLight(load_system("a100_sxm")).latency(
            Gemm(name="g", n=10, k=10, quant="fp8"), query(tokens=1, batch=1, length=1)
        )
