"""Errors, order and intervals of predictions made by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from msgspec.structs import replace
from scipy import stats

from aegis.planner.problem import Parallel
from aegis.planner.silicon.deployments import Deployment, in_fit_half
from aegis.planner.silicon.predict import Prediction
from aegis.planner.silicon.score import (
    Outcome,
    by_group,
    counted,
    of_test_half,
    order,
    rank_correlation,
    score,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.operations import Floats

BASE = Deployment(
    id="",
    backend="vllm",
    model="meta-llama/Llama-3.1-8B",
    system="h100_sxm",
    mode="agg",
    isl=1000,
    osl=101,
    concurrency=8,
    split=Parallel(tp=2),
    ttft=100.0,
    tpot=9.0,
)
TEST, FIT = ([f"r{each}" for each in range(200) if in_fit_half(f"r{each}") is half] for half in (False, True))


def row(identity: str = "a", **changed: Any) -> Deployment:
    return replace(BASE, id=identity, **changed)


def outcomes(*factors: float, spread: float = 0.0, **changed: Any) -> list[Outcome]:
    """Predictions that are so many times what was measured, of loads that grow."""
    found = []
    for index, factor in enumerate(factors, 1):
        each = row(concurrency=8 * index, tpot=9.0 + index, **changed)
        said = Prediction(each.ttft * factor, each.tpot * factor, spread, spread, spread, 3)
        found.append(Outcome(each, said))
    return found


def test_errors_are_shares_of_what_was_measured() -> None:
    found = score(outcomes(0.5, 1.0, 1.2, 1.3))
    assert found.rows == 4
    for errors in (found.tpot, found.ttft):
        assert errors.median == pytest.approx(0.25)
        assert errors.mean == pytest.approx(0.25)
        assert errors.bias == pytest.approx(0.1)
    # Times that are half as long are twice the throughput.
    assert found.throughput.mean == pytest.approx(np.mean([1.0, 0.0, 1 - 1 / 1.2, 1 - 1 / 1.3]))


def test_throughput_is_that_of_users_who_are_never_idle() -> None:
    (outcome,) = outcomes(1.0)
    request = 0.1 + 100 * 0.010  # s
    assert outcome.measured("throughput") == pytest.approx(8 / request * 101 / 2)


def test_intervals_hold_what_lies_within_them() -> None:
    eighty = math.exp(1.28 * 0.1)
    found = score(outcomes(eighty, 1 / eighty, 1.0, 1.2, spread=0.1))
    assert (found.tpot.held, found.ttft.held, found.throughput.held) == (0.75, 0.75, 0.75)


@given(spread=st.floats(0.01, 1), seed=st.integers(0, 100))
def test_intervals_of_normal_errors_hold_four_in_five(spread: float, seed: int) -> None:
    errors = np.exp(np.random.default_rng(seed).normal(0, spread, 1000))
    assert score(outcomes(*errors.tolist(), spread=spread)).tpot.held == pytest.approx(0.8, abs=0.06)


VALUES = arrays(np.float64, 12, elements=st.integers(0, 5).map(float))


@given(one=VALUES, other=VALUES)
def test_rank_correlation_is_spearmans(one: Floats, other: Floats) -> None:
    if len(set(one)) > 1 and len(set(other)) > 1:
        assert rank_correlation(one, other) == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)
    else:
        assert rank_correlation(one, other) == 0.0


def test_order_is_that_within_a_model_and_system() -> None:
    right, wrong = outcomes(*[1.0] * 6), outcomes(*[each**-3.0 for each in range(1, 13)], system="a100_sxm")
    assert order(right) == pytest.approx(1)
    alone = order(wrong)
    assert alone is not None
    assert order([*right, *wrong]) == pytest.approx((6 + 12 * alone) / 18)
    assert order(outcomes(1.0, 1.0)) is None


def test_groups_are_sorted() -> None:
    mixed = [*outcomes(1.0, 1.0), *outcomes(1.0, system="a100_sxm"), *outcomes(1.0)]
    found = by_group(mixed, lambda each: (each.system,))
    assert [(name, len(group)) for name, group in found.items()] == [(("a100_sxm",), 1), (("h100_sxm",), 3)]


def rows() -> Iterator[Deployment]:
    yield row(FIT[0])
    yield row(TEST[0])  # the same measurement once more
    yield row(TEST[1], tpot=10.0)
    yield row(TEST[2], tpot=11.0, split=Parallel(tp=5))  # 32 heads
    yield row(TEST[3], ttft=-1.0)
    yield row(TEST[4], tpot=12.0, system="b200_sxm")


def test_what_does_not_count_is_told() -> None:
    found = counted(rows(), of_test_half)
    assert [each.id for each in found.rows] == [TEST[1], TEST[4]]
    assert (found.of, found.copies) == (5, 1)
    assert sorted(found.left_out.values()) == [1, 1]
    assert any("heads" in rule for rule in found.left_out)


def test_a_copy_is_one_also_where_its_first_is_not_asked_for() -> None:
    found = counted(rows(), lambda each: each.id == TEST[0])
    assert (found.rows, found.of, found.copies) == ((), 1, 1)
