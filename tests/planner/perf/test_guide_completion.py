"""Completion against its rules, applied one value after the other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.planner.perf.completion import Target, complete, fill
from aegis.planner.tables.slices import Slice

if TYPE_CHECKING:
    from collections.abc import Sequence

VALUES = st.floats(0.001, 1000)
KEYS = st.lists(st.integers(1, 500), min_size=2, max_size=8, unique=True)


def one_by_one(known: dict[int, float], added: Sequence[int]) -> dict[int, float]:
    """Add each missing key from the two keys around it, among all that are there by then."""
    line = dict(known)
    for key in added:
        if key in line:
            continue
        keys = sorted(line)
        if key < keys[0]:
            low, high = keys[:2]
        elif key > keys[-1]:
            low, high = keys[-2:]
        else:
            high = next(each for each in keys if each > key)
            low = keys[keys.index(high) - 1]
        outside = not low < key < high
        if line[high] < line[low] and outside:
            line[key] = line[low]
        else:
            line[key] = line[low] + (line[high] - line[low]) / (high - low) * (key - low)
    return line


@given(KEYS.flatmap(lambda keys: st.tuples(st.just(keys), st.lists(VALUES, min_size=len(keys)))), KEYS)
def test_a_line_is_filled_as_if_key_by_key(known: tuple[list[int], list[float]], more: list[int]) -> None:
    line = dict(zip(*known, strict=False))
    added = tuple(sorted(more))
    keys = np.union1d(list(line), added)
    values = np.array([line.get(key, math.nan) for key in keys.tolist()])
    expected = one_by_one(line, added)
    assert fill(values, keys, added) == pytest.approx([expected[key] for key in keys.tolist()], rel=1e-9)


def test_the_first_key_beyond_a_falling_curve_is_the_first_that_is_added() -> None:
    keys, nan = np.array([1, 2, 4, 8]), math.nan
    line = {1: 3.0, 2: 2.0}
    values = np.array([3.0, 2.0, nan, nan])
    for added in ((4, 8), (8, 4)):
        expected = one_by_one(line, added)
        assert fill(values, keys, added) == pytest.approx([expected[key] for key in keys.tolist()])


def test_lines_with_fewer_than_two_values_are_left_alone() -> None:
    nan = math.nan
    values = np.array([[nan, 1.0, nan], [nan, nan, nan], [1.0, nan, 3.0]])
    filled = fill(values, np.array([1, 2, 3]), (1, 2, 3))
    assert np.array_equal(filled[:2], values[:2], equal_nan=True)
    assert filled[2].tolist() == [1.0, 2.0, 3.0]


def rows(points: dict[tuple[int, int, int], float]) -> Slice:
    ordered = sorted(points.items())
    axes = np.array([key for key, _ in ordered]).T
    return Slice((axes[0], axes[1], axes[2]), np.array([value for _, value in ordered]))


CORNERS = {(x, y, z): float(x + y * y * z) for x in (2, 4) for y in (1, 3) for z in (1, 2)}


def test_every_axis_is_completed_and_measured_values_stay() -> None:
    lattice = complete(rows(CORNERS), Target((0, 1, 2), (1, 3, 8), (2, 5), (4,)))
    assert [axis.tolist() for axis in lattice.axes] == [[2, 3, 4, 8], [1, 2, 3, 5], [1, 2, 4]]
    assert not np.isnan(lattice.values).any()
    for point, value in CORNERS.items():
        assert (
            lattice.values[tuple(np.searchsorted(a, p) for a, p in zip(lattice.axes, point, strict=True))]
            == value
        )
    assert lattice.values[1, 1, 0] == pytest.approx(3 + (1 + 9) / 2)


def test_square_roots_grow_linearly_where_that_is_asked_for() -> None:
    squares = {(x, y, z): float(y * y) for x, y, z in CORNERS}
    lattice = complete(rows(squares), Target((0, 1, 2), (), (2, 5), (), root=True))
    assert lattice.values[0, :, 0] == pytest.approx([1, 4, 9, 25])


def test_nothing_is_faster_than_the_floor() -> None:
    lattice = complete(
        rows(CORNERS), Target((0, 1, 2), (8,), (9,), (9,)), lambda x, y, z: 4.0 * x + 0.0 * (y + z)
    )
    assert (lattice.values >= 4 * lattice.axes[0][:, None, None]).all()
    assert lattice.values[0, 0, 0] == 8
    assert lattice.values[0, 1, 1] == 2 + 9 * 2


def test_the_axes_of_the_rows_may_come_in_another_order() -> None:
    turned = rows({(y, z, x): value for (x, y, z), value in CORNERS.items()})
    straight = complete(rows(CORNERS), Target((0, 1, 2), (1, 3), (2,), (4,)))
    assert np.array_equal(complete(turned, Target((2, 0, 1), (1, 3), (2,), (4,))).values, straight.values)
