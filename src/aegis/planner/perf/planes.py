"""Latency over two measured axes, of which the second ends sooner the farther the first one goes.

For each slot between two keys of a row a line is kept, at_zero + slope * z, NaN where nothing was measured: a query is
two look-ups and a blend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.arrays import distinct

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.planner.operations import Floats, Ints
    from aegis.planner.perf.sol import Number

    PlaneLight = Callable[[Number, Ints], Floats]


class Plane:
    """A ragged table over (y, z): rows of y, each with its own points along z."""

    def __init__(self, y: Ints, z: Ints, latency: Floats, *, roots: bool = False) -> None:
        """Take points (n,), sorted by y and z; `roots` blends square roots of latencies between rows."""
        self._roots = roots
        keys, starts = np.unique(y, return_index=True)
        self._at_zero, self._slope, self._z_bounds = _lines(starts, z, latency)
        self._y_bounds = _slots(keys)
        # For each slot of y the rows below and above; the last row is empty, for slots outside.
        low = keys.searchsorted(self._y_bounds, side="right") - 1
        high = np.where(keys[low] == self._y_bounds, low, low + 1)
        low = np.where(high == len(keys), high, low)
        low, high = (np.append(len(keys), each) for each in (low, high))
        places = np.append(keys, 0).astype(np.float64)
        self._y_low, self._y_high = places[low], places[high]
        apart = self._y_high - self._y_low
        self._per_y = np.divide(1.0, apart, out=np.zeros_like(apart), where=apart != 0)
        width = len(self._z_bounds) + 1
        self._low, self._high = low * width, high * width

    def __call__(self, y: Ints, z: Ints, light: PlaneLight) -> Floats:
        """Return ms in the shape that y and z broadcast to, NaN where neither row around y reaches z.

        Where one of them does, its utilisation counts: `light` is the speed of light at (y, z).
        """
        slot = self._y_bounds.searchsorted(y, side="right")
        column = self._z_bounds.searchsorted(z, side="right")
        low, high = (self._row(rows.take(slot) + column, z) for rows in (self._low, self._high))
        weight = (y - self._y_low.take(slot)) * self._per_y.take(slot)
        if self._roots:
            start = np.sqrt(low)
            value: Floats = np.square(start + (np.sqrt(high) - start) * weight)
        else:
            value = low + (high - low) * weight
        if np.isnan(value).any():
            ideal = light(y, z)
            value = one_sided(value, low, ideal, light(self._y_low.take(slot), z))
            value = one_sided(value, high, ideal, light(self._y_high.take(slot), z))
        return value

    def _row(self, index: Ints, z: Ints) -> Floats:
        value: Floats = self._slope.take(index)
        value *= z
        value += self._at_zero.take(index)
        return value


def one_sided(value: Floats, side: Floats, light: Floats, at_side: Floats) -> Floats:
    """Return `value`, or where that is NaN, `side` moved by the speed of light here and there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.where((light > 0) & (at_side > 0), side * light / at_side, side)
    return np.where(np.isnan(value), moved, value)


def _slots(keys: Ints) -> Ints:
    """Where slots begin: at each key, one that holds the key alone, and one for what lies between it and the next."""
    return distinct(np.concatenate((keys, keys + 1)))


def _lines(starts: Ints, z: Ints, latency: Floats) -> tuple[Floats, Floats, Ints]:
    """Return at_zero and slope for (rows + 1, slots + 1), flat, and where the slots begin."""
    z_bounds = _slots(distinct(z))
    rows = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(z))))
    scale = int(z_bounds[-1]) + 1
    ours = (np.arange(len(starts)) * scale)[:, None] + z_bounds
    at = (rows * scale + z).searchsorted(ours, side="right") - 1
    begun = at >= starts[:, None]
    exact = begun & (z[at] == z_bounds)
    goes_on = np.append(rows[1:] == rows[:-1], np.zeros(1, dtype=bool))[at]
    rise = np.append(np.diff(latency) / np.maximum(np.diff(z), 1), 0.0)[at]
    slope = np.where(goes_on, rise, 0.0)
    table = np.full((2, len(starts) + 1, len(z_bounds) + 1), np.nan)
    table[0, :-1, 1:] = np.where(begun & (exact | goes_on), latency[at] - slope * z[at], np.nan)
    table[1, :-1, 1:] = slope
    return table[0].ravel(), table[1].ravel(), z_bounds
