"""The closed form against the general interpolator that the guide's time used."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import griddata

from aegis.planner.perf.clough_tocher import interpolate

SIDES = [1, 2, 32, 256, 1024, 65536]
LOW = [1, 16, 64, 4096, 524288]


def test_it_is_what_scipy_makes_of_four_corners() -> None:
    random = np.random.default_rng(7)
    count = 400
    low, sides = random.choice(LOW, (2, count)), random.choice(SIDES, (2, count))
    at = np.where(
        random.random((2, count)) < 0.3, random.choice([0, 0.5, 1], (2, count)), random.random((2, count))
    )
    values = random.lognormal(0, 1, (count, 2, 2)) * 10 ** random.uniform(-3, 2, (count, 1, 1))
    found = interpolate(values, (sides[0], sides[1]), (at[0], at[1]))
    for index in range(count):
        (y, z), (height, width) = low[:, index], sides[:, index]
        points = np.array([[y, z], [y, z + width], [y + height, z], [y + height, z + width]], dtype=float)
        place = np.array([low[:, index] + at[:, index] * sides[:, index]])
        expected = griddata(points, values[index].ravel(), place, method="cubic")[0]
        assert found[index] == pytest.approx(expected, abs=1e-9 * values[index].max())


def test_many_rectangles_are_answered_at_once_as_one_by_one() -> None:
    random = np.random.default_rng(4)
    corners, sides = random.uniform(0.01, 10, (3, 5, 2, 2)), random.integers(1, 5000, (2, 5))
    at = random.uniform(0, 1, (2, 5))
    together = interpolate(corners, (sides[0], sides[1]), (at[0], at[1]))
    assert together.shape == (3, 5)
    for index in np.ndindex(3, 5):
        column = index[1]
        alone = interpolate(
            corners[index], (sides[0][column], sides[1][column]), (at[0][column], at[1][column])
        )
        assert float(alone) == pytest.approx(together[index], rel=1e-12)


def test_corners_and_planes_are_kept() -> None:
    corners = np.array([[1.0, 3.0], [2.0, 4.0]])
    u, v = np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 1, 5), indexing="ij")
    steep = interpolate(corners * 1e6, (1, 1), (u, v))
    assert steep == pytest.approx(1e6 * (1 + u + 2 * v), rel=1e-5)
    assert steep[[0, 0, -1, -1], [0, -1, 0, -1]] == pytest.approx([1e6, 3e6, 2e6, 4e6])
