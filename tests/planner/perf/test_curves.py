"""Latency along one axis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.planner.perf.curves import Curve

POINTS = st.dictionaries(st.integers(1, 10_000), st.floats(0.001, 100), min_size=1, max_size=12)


def curve(points: dict[int, float], tail: int = 1) -> Curve:
    keys = sorted(points)
    return Curve(
        np.array(keys), np.array([points[key] for key in keys]), lambda x: np.asarray(x) * 2.0, tail=tail
    )


@given(POINTS)
def test_measured_points_come_back(points: dict[int, float]) -> None:
    keys = np.array(sorted(points), dtype=float)
    assert curve(points)(keys) == pytest.approx([points[int(key)] for key in keys], rel=1e-9)


@given(POINTS, st.lists(st.floats(0.5, 20_000), min_size=1, max_size=9))
def test_between_points_it_is_the_straight_line(points: dict[int, float], asked: list[float]) -> None:
    keys = sorted(points)
    inside = np.array([x for x in asked if keys[0] <= x <= keys[-1]])
    want = np.interp(inside, keys, [points[key] for key in keys])
    assert curve(points)(inside) == pytest.approx(want, rel=1e-9)


def test_beyond_its_ends_the_utilisation_of_the_last_point_holds() -> None:
    assert curve({10: 1.0, 20: 4.0})(np.array([5.0, 40.0, 20.5])) == pytest.approx([0.5, 8.0, 4.1])


def test_or_the_median_of_the_last_points() -> None:
    # Utilisations 2, 4, 5, 10: the last three have the median 5, the first three 4.
    points = {10: 10.0, 20: 10.0, 30: 12.0, 40: 8.0}
    assert curve(points, tail=3)(np.array([80.0, 1.0])) == pytest.approx([160 / 5, 2 / 4])


def test_one_point_is_a_curve_too() -> None:
    assert curve({8: 2.0}, tail=3)(np.array([4.0, 8.0, 16.0])) == pytest.approx([1.0, 2.0, 4.0])


def test_any_shape_is_answered_in_its_shape() -> None:
    asked = np.array([[1.0, 10.0], [15.0, 30.0]])
    assert curve({10: 1.0, 20: 4.0})(asked).shape == (2, 2)
    assert curve({10: 1.0, 20: 4.0})(np.array([])).shape == (0,)
