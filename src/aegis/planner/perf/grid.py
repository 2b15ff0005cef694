"""Latency over two axes that a query varies, and any that it fixes (heads, a prefix): attention and whole blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.operations import NoData
from aegis.planner.perf.nearest import Nearest
from aegis.planner.perf.planes import Plane, one_sided

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.planner.operations import Floats, Ints
    from aegis.planner.perf.sol import Number
    from aegis.planner.tables.slices import Slice

    Fixed = tuple[int, ...]

_NEIGHBOURS = 4
_OCTAVES = 0.25  # size of a cell in which neighbours are looked for together


class Grid:
    """A ragged table over axes of whole numbers, with the rules of aiconfigurator 0.12.0 between its points.

    Axis by axis: an exact key; else a straight line between the two keys around it (of square roots along the last but
    one axis if `roots`). Where one of the two was not measured so far out, the other one's utilisation. Beyond that,
    the utilisation of the nearest points in octaves.
    """

    def __init__(self, table: Slice, light: Callable[..., Floats], *, roots: bool = False) -> None:
        """Take rows sorted by their axes, and the speed of light in ms at all of them, in their order."""
        self.axes, self.latency = table.axes, table.latency
        self._light = light
        self._roots = roots
        self._branches: dict[
            tuple[int, int], tuple[Ints, list[int]]
        ] = {}  # (first row, axis): keys and rows of each
        self._planes: dict[int, Plane] = {}  # by first row
        self._nearest: dict[Fixed, Nearest] = {}
        self._usable: tuple[Floats, ...] = ()  # axes in octaves, and utilisation, of the points that have one

    def __call__(self, fixed: Fixed, y: Ints, z: Ints) -> Floats:
        """Return ms at fixed values of the first axes and arrays of the last two, in the shape of these.

        Raises:
            NoData: the query lies beyond a table that holds nothing but zeros.
        """
        value = self._inside(fixed, (0, len(self.latency)), y, z)
        missing = np.isnan(value)
        if missing.any():
            shape = np.broadcast_shapes(y.shape, z.shape)
            value = np.array(np.broadcast_to(value, shape))
            value[missing] = self._beyond(fixed, *(np.broadcast_to(axis, shape)[missing] for axis in (y, z)))
        return value

    def _inside(self, fixed: Fixed, rows: tuple[int, int], y: Ints, z: Ints, *, depth: int = 0) -> Floats:
        """Answer from some rows, NaN where they say nothing; axes before `depth` are settled."""
        start, stop = rows
        if depth == len(fixed):
            if start not in self._planes:
                part = slice(start, stop)
                latency = self.latency[part]
                self._planes[start] = Plane(
                    self.axes[-2][part], self.axes[-1][part], latency, roots=self._roots
                )
            return self._planes[start](y, z, lambda a, b: self._light(*fixed, a, b))
        if (start, depth) not in self._branches:
            keys, starts = np.unique(self.axes[depth][start:stop], return_index=True)
            self._branches[start, depth] = keys, [start + int(each) for each in starts] + [stop]
        keys, bounds = self._branches[start, depth]

        def branch(place: int) -> Floats:
            return self._inside(fixed, (bounds[place], bounds[place + 1]), y, z, depth=depth + 1)

        value = fixed[depth]
        place = int(keys.searchsorted(value))
        if place < len(keys) and keys[place] == value:
            return branch(place)
        if place in {0, len(keys)}:
            return np.full(np.broadcast_shapes(y.shape, z.shape), np.nan)
        return self._between(
            (fixed, depth), keys[place - 1 : place + 1], (branch(place - 1), branch(place)), (y, z)
        )

    def _between(
        self, where: tuple[Fixed, int], keys: Ints, sides: tuple[Floats, Floats], at: tuple[Number, Number]
    ) -> Floats:
        (fixed, depth), (low, high) = where, sides
        value: Floats = low + (high - low) * ((fixed[depth] - keys[0]) / (keys[1] - keys[0]))
        if np.isnan(value).any():
            ideal = self._light(*fixed, *at)
            for key, side in zip(keys, sides, strict=True):
                there = (*fixed[:depth], float(key), *fixed[depth + 1 :])
                value = one_sided(value, side, ideal, self._light(*there, *at))
        return value

    def _beyond(self, fixed: Fixed, y: Ints, z: Ints) -> Floats:
        """Hold the utilisation of the four nearest points, weighted down to none at the fifth."""
        if not self._usable:
            self._usable = self._points()
        *first, second, third, utilisation = self._usable
        if fixed not in self._nearest:
            offset = np.zeros(len(second))
            for axis, value in zip(first, fixed, strict=True):
                offset += np.square(axis - _octaves(np.array(value)))
            self._nearest[fixed] = Nearest((second, third), offset, count=_NEIGHBOURS + 1, cell=_OCTAVES)
        nearest = self._nearest[fixed]
        index, squared = nearest.find(_octaves(y), _octaves(z))
        weight = _weights(np.sqrt(squared))
        held = (weight * utilisation.take(index)).sum(axis=1)
        return np.asarray(self._light(*fixed, y, z) * weight.sum(axis=1) / held)

    def _points(self) -> tuple[Floats, ...]:
        ideal = self._light(*(axis.astype(np.float64) for axis in self.axes))
        usable = (ideal > 0) & (self.latency > 0)
        if not usable.any():
            raise NoData("no measured point is above zero")
        return (*(_octaves(axis[usable]) for axis in self.axes), ideal[usable] / self.latency[usable])


def _weights(distance: Floats) -> Floats:
    """Weigh (queries, neighbours), the farthest last; of five it only sets the reach."""
    if distance.shape[1] <= _NEIGHBOURS:
        return 1 / (np.square(distance) + 1e-12)
    reach = distance[:, -1:]
    weight = np.square((reach - distance) / (reach * distance + 1e-12))
    weight[:, -1] = 0
    weight[weight.sum(axis=1) == 0, :-1] = 1
    return weight


def _octaves(axis: Ints) -> Floats:
    return np.log2(np.maximum(axis, 1e-12))
