"""Completion of measured lattices, as it was done in the guide's time: every table is carried on to fixed keys.

Rules: a missing value lies on the line through the two keys around it, or beyond the ends on the line through the
two end keys; a falling curve does not fall on beyond its ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from aegis.planner.arrays import distinct

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.planner.operations import Floats, Ints
    from aegis.planner.tables.slices import Slice


_Array = TypeVar("_Array", "Floats", "Ints")


class Target(NamedTuple):
    """The keys that one kind of table is completed to, an axis each, in the order in which they are added."""

    order: tuple[int, int, int]  # of the slice's axes: x, y, z
    x: tuple[int, ...]  # not below the smallest measured one
    y: tuple[int, ...]
    z: tuple[int, ...]
    root: bool = False  # along y, square roots are what grows linearly


class Lattice(NamedTuple):
    """A table without holes: `values[i, j, k]` at `axes[0][i], axes[1][j], axes[2][k]`, in ms."""

    axes: tuple[Ints, Ints, Ints]
    values: Floats


def complete(
    rows: Slice, target: Target, floor: Callable[[Ints, Ints, Ints], Floats] | None = None
) -> Lattice:
    """Return the completed table: along z first, then y, then x; NaN stays where fewer than two values are known.

    `floor(x, y, z)` is the least that a value can be, in ms; arguments broadcast. A single x stays alone.
    """
    measured = tuple(rows.axes[axis] for axis in target.order)
    latency = rows.latency if floor is None else np.maximum(rows.latency, floor(*measured))
    there = tuple(distinct(axis) for axis in measured)
    planes_too = there[0].size > 1
    wanted = (tuple(key for key in target.x if planes_too and key >= there[0][0]), target.y, target.z)
    x, y, z = (
        np.union1d(keys, np.array(more, dtype=np.int64)) for keys, more in zip(there, wanted, strict=True)
    )
    values = np.full((x.size, y.size, z.size), np.nan)
    values[tuple(np.searchsorted(keys, at) for keys, at in zip((x, y, z), measured, strict=True))] = latency
    here = np.isin(x, there[0])
    planes = fill(values[here], z, wanted[2])
    roots = np.sqrt(planes) if target.root else planes
    filled = fill(roots.swapaxes(1, 2), y, wanted[1]).swapaxes(1, 2)
    values[here] = np.where(np.isnan(planes), np.square(filled), planes) if target.root else filled
    values = np.moveaxis(fill(np.moveaxis(values, 0, -1), x, wanted[0]), -1, 0)
    if floor is not None:
        values = np.maximum(values, floor(x[:, None, None], y[:, None], z))
    return Lattice((x, y, z), values)


def fill(values: Floats, keys: Ints, added: tuple[int, ...]) -> Floats:
    """Return `values` with the NaN along its last axis filled; lines with fewer than two values are left alone.

    `added` are the missing keys in the order in which they are filled. Beyond the upper end of a falling curve the
    first of them takes the value of the last key but one, filled ones included; the others follow the line to it.
    """
    present = ~np.isnan(values)
    shared = present.reshape(-1, keys.size)
    if (shared == shared[0]).all():  # holes alike in every line: one line of indices does for all
        present = shared[0].reshape((1,) * (values.ndim - 1) + (keys.size,))
    if present.all():
        return values
    index = np.arange(keys.size)
    left = np.maximum.accumulate(np.where(present, index, -1), axis=-1)
    right = np.minimum.accumulate(np.where(present, index, keys.size)[..., ::-1], axis=-1)[..., ::-1]
    first, last = right[..., :1], left[..., -1:]
    usable = first < last
    first, last = np.where(usable, first, 0), np.where(usable, last, 1)
    second, before = _at(right, first + 1), _at(left, last - 1)
    low = np.where(index < first, first, np.where(index > last, before, left)) * usable
    high = np.where(index < first, second, np.where(index > last, last, right)) * usable
    v0, v1 = _at(values, low), _at(values, high)
    slope = (v1 - v0) / np.where(low == high, 1, keys[high] - keys[low])
    held = (slope < 0) & (index < first)
    filled = np.where(present, values, np.where(held, v0, v0 + slope * (keys - keys[low])))
    falling = (slope < 0) & (index > last)
    if falling.any():
        base, goal = _at(filled, last), _at(filled, last - 1)
        to = _first_added(keys, added)[last]
        filled = np.where(falling, base + (goal - base) / (to - keys[last]) * (keys - keys[last]), filled)
    result: Floats = np.where(usable, filled, values)
    return result


def _at(values: _Array, index: Ints) -> _Array:
    return np.take_along_axis(values, index, axis=-1)


def _first_added(keys: Ints, added: tuple[int, ...]) -> Ints:
    """Return for each key the first of `added` that lies above it (just above it if none does)."""
    return np.array([next((each for each in added if each > key), key + 1) for key in keys.tolist()])
