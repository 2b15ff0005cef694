"""The measured points that are nearest to a query, for many queries at once.

A plane is cut into square cells; the few points that can be among the nearest of any query of a cell are found once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.arrays import distinct

if TYPE_CHECKING:
    from aegis.planner.operations import Floats, Ints

_CELLS = 1 << 20  # of one axis; cells are numbered row by row
_PAIRS = 1 << 22  # distances that are held at a time


class Nearest:
    """Points in a plane, each with a squared distance of its own that is added (axes that all queries share)."""

    def __init__(self, points: tuple[Floats, Floats], offset: Floats, *, count: int, cell: float) -> None:
        """Take coordinates (points,), offsets (points,), how many neighbours are wanted, and the size of a cell."""
        self._points = points
        self._offset = offset
        self._padded = [np.append(axis, np.inf) for axis in (*points, offset)]
        self.count = min(count, len(offset))
        self._cell = cell
        self._codes: Ints = np.zeros(0, dtype=np.int64)  # of known cells, sorted
        self._near: Ints = np.zeros(
            (0, self.count), dtype=np.int64
        )  # (cells, candidates), padded with len(offset)

    def find(self, y: Floats, z: Floats) -> tuple[Ints, Floats]:
        """Return points and squared distances (queries, count) of queries (queries,); the farthest comes last."""
        row, column = (np.floor(axis / self._cell).astype(np.int64) + _CELLS // 2 for axis in (y, z))
        code = row * _CELLS + column
        self._learn(distinct(code))
        cell = self._codes.searchsorted(code)
        step = max(1, _PAIRS // self._near.shape[1])
        parts = [
            self._among(self._near[cell[i : i + step]], y[i : i + step], z[i : i + step])
            for i in range(0, len(y), step)
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _among(self, near: Ints, y: Floats, z: Floats) -> tuple[Ints, Floats]:
        distance = self._distance(near, y[:, None], z[:, None])
        last = self.count - 1
        order = np.argpartition(distance, last, axis=1)[:, : self.count]
        return np.take_along_axis(near, order, 1), np.take_along_axis(distance, order, 1)

    def _distance(self, near: Ints, y: Floats, z: Floats) -> Floats:
        rows, columns, result = (axis.take(near) for axis in self._padded)
        result += np.square(rows - y)
        result += np.square(columns - z)
        return result

    def _learn(self, codes: Ints) -> None:
        """Find the candidates of cells that are new."""
        codes = codes[np.append(self._codes, -1)[self._codes.searchsorted(codes)] != codes]
        if len(codes) == 0:
            return
        least = self._offset + np.zeros((len(codes), 1))
        most = least.copy()
        for axis, place in zip(self._points, divmod(codes, _CELLS), strict=True):
            low = ((place - _CELLS // 2) * self._cell)[:, None]
            far = np.maximum(np.abs(axis - low), np.abs(axis - low - self._cell))
            gap = np.maximum(np.maximum(low - axis, axis - low - self._cell), 0)
            least += gap * gap
            most += far * far
        reach = np.partition(most, self.count - 1, axis=1)[:, self.count - 1]
        inside = least <= reach[:, None] * (1 + 1e-9)
        width = int(inside.sum(axis=1).max())
        order = np.argsort(~inside, axis=1, kind="stable")[:, :width]
        found = np.where(np.take_along_axis(inside, order, 1), order, len(self._offset))
        self._merge(codes, found)

    def _merge(self, codes: Ints, found: Ints) -> None:
        width = max(found.shape[1], self._near.shape[1])
        rows = [
            np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=len(self._offset))
            for each in (self._near, found)
        ]
        codes = np.concatenate((self._codes, codes))
        order = codes.argsort()
        self._codes = codes[order]
        self._near = np.concatenate(rows)[order]
