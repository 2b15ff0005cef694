"""Utilisation of the nearest points."""

from __future__ import annotations

import numpy as np
import pytest

from aegis.planner.operations import NoData
from aegis.planner.perf.utilisation import Utilisation, nearest_delta


def test_a_measured_point_keeps_its_own_utilisation() -> None:
    used = Utilisation(
        (np.array([1, 10, 100]),), np.array([1.0, 2.0, 3.0]), np.array([2.0, 8.0, 4.0]), fixed=0
    )
    assert used((), (np.array([1.0, 10.0, 100.0]),)) == pytest.approx([0.5, 0.25, 0.75])


def test_between_two_points_the_nearer_one_counts_more() -> None:
    used = Utilisation((np.array([1, 100]),), np.array([1.0, 1.0]), np.array([1.0, 2.0]), fixed=0)
    # ln 10 lies in the middle of ln 1 and ln 100.
    assert float(used((), (np.array(10.0),))) == pytest.approx(0.75)
    quarter = 100**0.25
    assert float(used((), (np.array(quarter),))) == pytest.approx(0.75 * 1.0 + 0.25 * 0.5)


def test_beyond_its_points_the_edge_holds() -> None:
    used = Utilisation((np.array([4, 8]),), np.array([1.0, 1.0]), np.array([1.0, 2.0]), fixed=0)
    assert used((), (np.array([[1.0], [1e6]]),)) == pytest.approx(np.array([[1.0], [0.5]]))


def test_axes_that_a_query_shares_and_axes_that_it_varies_are_one_space() -> None:
    rng = np.random.default_rng(3)
    axes = tuple(rng.integers(1, 1000, 60) for _ in range(3))
    ideal, latency = rng.uniform(0.1, 1, 60), rng.uniform(1, 2, 60)
    y, z = rng.integers(1, 1500, 40).astype(float), rng.integers(1, 1500, 40).astype(float)
    got = Utilisation(axes, ideal, latency, fixed=1)((77,), (y, z))
    logs = np.log(np.stack(axes, axis=1))
    low, span = logs.min(axis=0), np.ptp(logs, axis=0)
    for value, second, third in zip(got, y, z, strict=True):
        at = ((np.log([77, second, third]) - low) / span).clip(0, 1)
        distance = np.linalg.norm((logs - low) / span - at, axis=1)
        near = distance.argsort()[:2]
        weight = 1 / distance[near]
        assert value == pytest.approx((weight * (ideal / latency)[near]).sum() / weight.sum())


def test_points_without_a_latency_are_left_out_and_none_at_all_is_no_data() -> None:
    used = Utilisation((np.array([1, 2]),), np.array([1.0, 1.0]), np.array([0.0, 4.0]), fixed=0)
    assert float(used((), (np.array(1.0),))) == 0.25
    with pytest.raises(NoData):
        Utilisation((np.array([1]),), np.array([1.0]), np.array([0.0]), fixed=0)


def test_a_difference_of_nothing_stays_nothing_and_others_grow_with_the_work() -> None:
    axes = np.array([1, 1000]), np.array([64, 64])
    got = nearest_delta(
        axes, np.array([0.0, 2.0]), (np.array([2.0, 4000.0]), np.array(64.0)), lambda m, k: np.asarray(m * k)
    )
    assert got == pytest.approx([0.0, 8.0])
