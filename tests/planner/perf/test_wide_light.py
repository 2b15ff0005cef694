"""Latent attention beside wide experts, against what aiconfigurator 0.12.0 gives (ms)."""

from __future__ import annotations

import pytest

from aegis.planner.operations import ContextMla, GenerationMla, NoData, query
from aegis.planner.perf.measured import Measured
from aegis.planner.perf.wide_light import wide_context, wide_generation
from aegis.planner.systems import load_system
from aegis.planner.tables.store import open_tables


@pytest.mark.parametrize(
    ("heads", "batch", "length", "expected"),
    [(128, 1, 4096, 1.407046920024267), (32, 2, 4096, 0.7035234600121335), (128, 1, 1, 0.0358912)],
)
def test_reading_is_bound_by_arithmetic_or_by_weights(
    heads: int, batch: int, length: int, expected: float
) -> None:
    found = wide_context(load_system("h200_sxm"), heads, length, batch)
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("heads", "batch", "length", "expected"),
    [
        (128, 100, 64, 0.04998101333333333),
        (128, 300, 20000, 1.741919048736097),
        (32, 100, 4096, 0.11066325333333334),
    ],
)
def test_a_decode_step_is_bound_by_its_cache_or_by_arithmetic(
    heads: int, batch: int, length: int, expected: float
) -> None:
    found = wide_generation(load_system("h200_sxm"), heads, batch, length)
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("system", "heads", "batch", "length", "expected"),
    [
        ("h200_sxm", 128, 100, 4096, 0.3352163833322681),
        ("h200_sxm", 32, 300, 20000, 2.718778866635564),
        # another kernel than the usual one was measured
        ("b200_sxm", 128, 100, 4096, 0.19659616579855563),
    ],
)
def test_measured_decode_steps_are_those_that_were_recorded(
    system: str, heads: int, batch: int, length: int, expected: float
) -> None:
    performance = Measured(load_system(system), open_tables(system, "sglang"))
    attention = GenerationMla(name="attention", heads=heads, kv_cache="fp8", wide=True)
    at = query(tokens=[batch], batch=[batch], length=[length])
    assert performance.latency(attention, at)[0] == pytest.approx(expected, rel=1e-3)


def test_a_format_that_was_not_measured_has_no_answer() -> None:
    performance = Measured(load_system("h200_sxm"), open_tables("h200_sxm", "sglang"))
    attention = ContextMla(name="attention", heads=128, kv_cache="bfloat16", fmha="bfloat16", wide=True)
    with pytest.raises(NoData, match="wideep_context_mla"):
        performance.latency(attention, query(tokens=[9], batch=[1], length=[9]))
