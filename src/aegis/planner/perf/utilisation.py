"""How much of the speed of light measured points reach, and what that is for a query near them.

Axes are compared in logarithms, each from 0 to 1 over what was measured; a query outside is moved to the edge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.operations import NoData
from aegis.planner.perf.nearest import Nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from aegis.planner.operations import Floats

_CELL = 1 / 32
_PLANE = 2  # axes that vary within a query


class Utilisation:
    """The utilisation of the two nearest points, weighted by how near they are."""

    def __init__(
        self, axes: Sequence[NDArray[np.generic]], ideal: Floats, latency: Floats, *, fixed: int
    ) -> None:
        """Take axes (points,), of which the first `fixed` are one number for a query, and at most two vary.

        Raises:
            NoData: no point is usable.
        """
        usable = (ideal > 0) & (latency > 0)
        if not usable.any():
            raise NoData("no measured point has a utilisation")
        logs = [_log(axis[usable]) for axis in axes]
        self._least = [float(axis.min()) for axis in logs]
        self._span = [float(np.ptp(axis)) or 1.0 for axis in logs]
        scaled = [(axis - low) / span for axis, low, span in zip(logs, self._least, self._span, strict=True)]
        self._fixed, plane = scaled[:fixed], scaled[fixed:]
        self._plane = (*plane, *[np.zeros(int(usable.sum()))] * (_PLANE - len(plane)))
        self._value = ideal[usable] / latency[usable]
        self._nearest: dict[tuple[float, ...], Nearest] = {}

    def __call__(self, fixed: tuple[float, ...], varying: tuple[NDArray[np.floating], ...]) -> Floats:
        """Return the utilisation in the shape that the varying axes broadcast to."""
        if fixed not in self._nearest:
            places = [self._place(np.asarray(value), axis) for axis, value in enumerate(fixed)]
            offset = sum(
                (np.square(axis - place) for axis, place in zip(self._fixed, places, strict=True)), 0.0
            )
            total = offset + np.zeros(len(self._value))
            self._nearest[fixed] = Nearest((self._plane[0], self._plane[1]), total, count=2, cell=_CELL)
        shape = np.broadcast_shapes(*(axis.shape for axis in varying))
        query = [self._place(axis, len(fixed) + i) for i, axis in enumerate(varying)]
        query += [np.zeros(())] * (_PLANE - len(query))
        y, z = (np.broadcast_to(axis, shape).ravel() for axis in query)
        index, squared = self._nearest[fixed].find(y, z)
        distance = np.sqrt(squared)
        value = self._value.take(index)
        exact = distance[:, 0] == 0
        weight = 1 / np.where(exact[:, None], 1.0, distance)
        blend = (weight * value).sum(axis=1) / weight.sum(axis=1)
        return np.where(exact, value[:, 0], blend).reshape(shape)

    def _place(self, value: NDArray[np.floating], axis: int) -> Floats:
        return ((_log(value) - self._least[axis]) / self._span[axis]).clip(0, 1)


def nearest_delta(
    axes: tuple[NDArray[np.generic], NDArray[np.generic]],
    latency: Floats,
    at: tuple[Floats, Floats],
    ideal: Callable[[Floats, Floats], Floats],
) -> Floats:
    """Return a difference of two latencies, which may be 0, from the nearest point over two axes, scaled by the work."""
    logs = [_log(axis) for axis in axes]
    spans = [float(np.ptp(axis)) or 1.0 for axis in logs]
    shape = np.broadcast_shapes(*(axis.shape for axis in at))
    plane = (logs[0] / spans[0], logs[1] / spans[1])
    y, z = (np.broadcast_to(_log(axis) / span, shape).ravel() for axis, span in zip(at, spans, strict=True))
    index = Nearest(plane, np.zeros(len(latency)), count=1, cell=_CELL).find(y, z)[0][:, 0].reshape(shape)
    there = ideal(axes[0][index].astype(np.float64), axes[1][index].astype(np.float64))
    return latency[index] * ideal(*at) / there


def _log(axis: NDArray[np.generic]) -> Floats:
    return np.log(np.maximum(axis.astype(np.float64), 1e-9))
