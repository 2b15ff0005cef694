"""Ragged grids, against the same rules written point by point."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.planner.perf.grid import Grid
from aegis.planner.tables.slices import Slice

if TYPE_CHECKING:
    from aegis.planner.perf.sol import Number

Table: TypeAlias = dict[int, dict[int, dict[int, float]]]

KEYS = [1, 2, 3, 4, 6, 8, 16, 33, 64]
HEADS = st.lists(st.sampled_from([1, 2, 4, 8, 24]), min_size=1, max_size=3, unique=True)
ROWS = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)
LATENCY = st.floats(0.01, 10)
TABLES = HEADS.flatmap(
    lambda heads: st.fixed_dictionaries(
        {
            head: st.dictionaries(
                st.sampled_from(KEYS),
                st.dictionaries(st.sampled_from(KEYS), LATENCY, min_size=1, max_size=5),
                min_size=1,
                max_size=4,
            )
            for head in heads
        }
    )
)
POINTS = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=12)


def light(first: Number, second: Number, third: Number) -> np.ndarray:
    return np.asarray(1e-3 * (first * second + 0.2 * second * third + 3 * third))


def build(table: Table, *, roots: bool = False) -> Grid:
    rows = sorted((x, y, z, ms) for x, ys in table.items() for y, zs in ys.items() for z, ms in zs.items())
    *axes, latency = (np.array(column) for column in zip(*rows, strict=True))
    return Grid(
        Slice(tuple(axis.astype(np.int64) for axis in axes), latency.astype(float)), light, roots=roots
    )


def inside(node: object, at: tuple[int, ...], path: tuple[int, ...], *, roots: bool) -> float | None:
    """None: not measured so far out."""
    if not isinstance(node, dict):
        return node  # type: ignore[return-value]
    want, keys = at[len(path)], sorted(node)
    if want in node:
        return inside(node[want], at, (*path, want), roots=roots)
    if not keys[0] < want < keys[-1]:
        return None
    place = bisect_left(keys, want)
    around = keys[place - 1], keys[place]
    known = [(key, inside(node[key], at, (*path, key), roots=roots)) for key in around]
    (_, low), (_, high) = known
    if low is None or high is None:
        return one_sided(known, at, len(path))
    weight = float((want - around[0]) / (around[1] - around[0]))
    if roots and len(path) == 1:
        return float((math.sqrt(low) + (math.sqrt(high) - math.sqrt(low)) * weight) ** 2)
    return low + (high - low) * weight


def one_sided(known: list[tuple[int, float | None]], at: tuple[int, ...], axis: int) -> float | None:
    for key, value in known:
        if value is not None:
            moved = (*at[:axis], key, *at[axis + 1 :])
            return value * float(light(*at)) / float(light(*moved))
    return None


def beyond(table: Table, at: tuple[int, int, int]) -> float:
    leaves = [((x, y, z), ms) for x, ys in table.items() for y, zs in ys.items() for z, ms in zs.items()]
    far = sorted(
        (math.dist([math.log2(c) for c in place], [math.log2(c) for c in at]), float(light(*place)) / ms)
        for place, ms in leaves
    )
    near = far[:4]
    if len(far) > 4:
        reach = far[4][0]
        weights = [((reach - d) / (reach * d + 1e-12)) ** 2 for d, _ in near]
    else:
        weights = [1 / (d * d + 1e-12) for d, _ in near]
    if sum(weights) == 0:
        weights = [1.0] * len(near)
    used = sum(w * u for w, (_, u) in zip(weights, near, strict=True)) / sum(weights)
    return float(light(*at)) / used


@settings(max_examples=50, deadline=None)
@given(TABLES, st.sampled_from([1, 2, 3, 5, 8, 17, 30]), POINTS, st.booleans())
def test_a_grid_answers_many_points_as_the_rules_answer_one(
    table: Table, first: int, points: list[tuple[int, int]], roots: bool
) -> None:
    y, z = np.array(points, dtype=np.int64).T
    got = build(table, roots=roots)((first,), y, z)
    for value, (second, third) in zip(got, points, strict=True):
        at = (first, second, third)
        want = inside(table, at, (), roots=roots)
        if want is None:
            want = beyond(table, at)
            # Which of several points at the same distance count is anyone's guess.
            assert value == pytest.approx(want, rel=1e-6) or has_ties(table, at)
        else:
            assert value == pytest.approx(want, rel=1e-11)


def has_ties(table: Table, at: tuple[int, int, int]) -> bool:
    far = sorted(
        math.dist([math.log2(c) for c in (x, y, z)], [math.log2(c) for c in at])
        for x, ys in table.items()
        for y, zs in ys.items()
        for z in zs
    )
    return len(far) > 4 and math.isclose(far[0], far[4], rel_tol=1e-6)


def test_any_number_of_axes_may_be_fixed() -> None:
    three = {4: {1: {1: 0.5, 8: 0.7}, 9: {1: 0.9, 8: 1.4}}, 8: {1: {1: 0.6, 8: 0.9}, 9: {1: 1.1}}}
    rows = sorted((x, y, z, ms) for x, ys in three.items() for y, zs in ys.items() for z, ms in zs.items())
    x, y, z, ms = (np.array(column) for column in zip(*rows, strict=True))
    at = np.array([1, 2, 9, 20]), np.array([1, 3, 8, 100])
    two = Grid(Slice((y[:4], z[:4]), ms[:4]), lambda b, c: light(4, b, c))
    constant = np.full(len(x), 7)
    four = Grid(Slice((constant, x, y, z), ms), lambda _, a, b, c: light(a, b, c))
    assert two((), *at)[:3] == pytest.approx(build(three)((4,), *at)[:3])
    for first in (4, 5, 8):
        assert four((7, first), *at) == pytest.approx(build(three)((first,), *at))


def test_measured_points_come_back_as_they_are() -> None:
    grid = build({4: {1: {1: 0.5, 2: 0.7}, 9: {1: 0.9}}})
    assert grid((4,), np.array([1, 1, 9]), np.array([1, 2, 1])).tolist() == [0.5, 0.7, 0.9]


def test_axes_broadcast() -> None:
    grid = build({4: {1: {1: 0.5, 8: 0.7}, 9: {1: 0.9, 8: 1.4}}})
    y, z = np.array([[1], [5], [9], [400]]), np.array([1, 3, 8, 200])
    whole = grid((4,), y, z)
    assert whole.shape == (4, 4)
    each = [[grid((4,), np.array([int(a)]), np.array([b]))[0] for b in z] for a in y[:, 0]]
    assert whole == pytest.approx(np.array(each), rel=1e-12)


def test_far_beyond_the_table_latency_grows_as_the_speed_of_light() -> None:
    grid = build({4: {1: {1: 0.5, 8: 0.7, 16: 1.0}, 9: {1: 0.9, 8: 1.4}}})
    near, far = grid((4,), np.array([9]), np.array([10**5])), grid((4,), np.array([9]), np.array([10**6]))
    assert far / near == pytest.approx(float(light(4, 9, 10**6)) / float(light(4, 9, 10**5)), rel=0.02)
