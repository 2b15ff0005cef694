"""Latency along one measured axis: exact at the points, straight between them, constant utilisation beyond."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from aegis.planner.operations import Floats
    from aegis.planner.perf.sol import Number


class Curve:
    """A curve through measured points; call it with an array of any shape.

    Beyond its ends the answer is the speed of light over the median utilisation of the last `tail` points of that end
    (the rule of aiconfigurator 0.12.0).
    """

    def __init__(
        self,
        points: NDArray[np.generic],
        latency: Floats,
        light: Callable[[Number], Floats],
        *,
        tail: int = 1,
    ) -> None:
        """Take points (n,), rising, their latencies (n,) in ms, and the speed of light at any of them."""
        self.points = points.astype(np.float64)
        self.latency = latency
        self._light = light
        self._tail = tail
        rise = np.diff(latency) / np.diff(self.points)
        # A slot before the first point, one after each point, and one that holds the last point alone.
        edge, flat = np.array([np.nan]), np.zeros(1)
        self._bounds = np.append(self.points, np.nextafter(self.points[-1], np.inf))
        self._slope = np.concatenate((edge, rise, flat, edge))
        at_zero = latency[:-1] - rise * self.points[:-1]
        self._at_zero = np.concatenate((edge, at_zero, latency[-1:], edge))

    def __call__(self, x: NDArray[np.floating]) -> Floats:
        """Return ms at each x."""
        slot = self._bounds.searchsorted(x, side="right")
        value: Floats = self._slope.take(slot)
        value *= x
        value += self._at_zero.take(slot)
        if x.size and (x.min() < self.points[0] or x.max() > self.points[-1]):
            below = x < self.points[0]
            for outside, end in (
                (below, slice(None, self._tail)),
                (x > self.points[-1], slice(-self._tail, None)),
            ):
                if outside.any():
                    value = np.where(outside, self._light(x) / self._utilisation(end), value)
        return value

    def _utilisation(self, end: slice) -> float:
        return float(np.median(self._light(self.points[end]) / self.latency[end]))
