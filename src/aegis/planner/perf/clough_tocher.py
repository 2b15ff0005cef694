"""Piecewise cubic interpolation in a rectangle of which only the four corner values are known.

The guide's time handed these four points to a general scattered-data interpolator: the Clough-Tocher element on a
triangulation, with slopes that bend the edges least (scipy.interpolate.CloughTocher2DInterpolator). On a rectangle this
has a closed form: the cut always goes from the lowest to the highest corner, and all edges have the same affine normal
(-1/2).

Corners: 0 = (low, low), 1 = (low, high), 2 = (high, low), 3 = (high, high).
"""

from __future__ import annotations

from math import factorial, prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from aegis.planner.operations import Floats

# Slopes are relaxed until they change by less: absolutely while they are below 1, so that small ones stop early.
_TOLERANCE = 1e-6
_SWEEPS = 400
_CORNERS = 4
_SLOPES = 2 * _CORNERS  # of each corner along the height and along the width


def interpolate(
    corners: Floats, sides: tuple[ArrayLike, ArrayLike], at: tuple[ArrayLike, ArrayLike]
) -> Floats:
    """Return the interpolated values, in the unit of the corners.

    Args:
        corners: (..., 2, 2), first axis along the height.
        sides: height and width of the rectangles, broadcast to (...).
        at: place within the rectangle along height and width, 0 to 1, broadcast to (...).
    """
    height, width, u, v = (np.asarray(each, dtype=np.float64) for each in (*sides, *at))
    shape = np.broadcast_shapes(corners.shape[:-2], *(each.shape for each in (height, width, u, v)))
    values = np.broadcast_to(corners.reshape(*corners.shape[:-2], _CORNERS), (*shape, _CORNERS))
    slopes = _slopes(values, _sweep(height, width))
    f0, f1, f2, f3 = np.moveaxis(values, -1, 0)
    scale = np.stack(np.broadcast_arrays(height, width), -1)
    rises = np.moveaxis(
        slopes.reshape(*slopes.shape[:-1], _CORNERS, 2) * scale[..., None, :], (-2, -1), (0, 1)
    )
    upper = v >= u  # in the triangle 0, 1, 3; else in 0, 2, 3
    along = np.where(upper, rises[:, 1], rises[:, 0])  # the edge from 0 to the middle corner
    across = np.where(upper, rises[:, 0], rises[:, 1])  # the edge from there to 3
    net = _control_net(
        (f0, np.where(upper, f1, f2), f3),
        (
            (along[0], along[0] + across[0]),
            (-np.where(upper, along[1], along[2]), np.where(upper, across[1], across[2])),
            (-along[3] - across[3], -across[3]),
        ),
    )
    far, near = np.maximum(u, v), np.minimum(u, v)
    return _bernstein(net, (1 - far, far - near, near))


def _slopes(values: Floats, sweep: Floats) -> Floats:
    """Return the slopes (..., 8) at the corners: height and width of 0, of 1, of 2, of 3."""
    matrix, start = sweep[..., :_SLOPES], (sweep[..., _SLOPES:] @ values[..., None])[..., 0]
    slopes = np.zeros_like(start)
    active = np.ones((*start.shape[:-1], 1), dtype=bool)
    for _ in range(_SWEEPS):
        new = (matrix @ slopes[..., None])[..., 0] + start
        pairs = np.stack((np.abs(new - slopes), np.abs(new))).reshape(2, *new.shape[:-1], _CORNERS, 2)
        moved, size = pairs.max(axis=-1)
        slopes = np.where(active, new, slopes)
        active = active & ((moved / np.maximum(size, 1)).max(axis=-1, keepdims=True) >= _TOLERANCE)
        if not active.any():
            break
    return slopes


def _sweep(height: Floats, width: Floats) -> Floats:
    """Return the matrix (..., 8, 12) that takes slopes and corner values to the slopes after one sweep.

    A sweep goes over the corners, each seeing those before it already changed: it is linear, so unit vectors tell it.
    """
    height, width = height[..., None], width[..., None]
    (_, _, h1, w1, h2, w2, h3, w3), (f0, f1, f2, f3) = np.split(np.eye(_SLOPES + _CORNERS), [_SLOPES])
    low, high = 6 * (f2 - f0) / height, 6 * (f3 - f1) / height
    left, right = 6 * (f1 - f0) / width, 6 * (f3 - f2) / width
    cube = np.hypot(height, width) ** 3
    a, b, c = 4 / height + 4 * height**2 / cube, 4 * height * width / cube, 4 / width + 4 * width**2 / cube
    determinant = a * c - b * b

    def on_diagonal(along: Floats, across: Floats, far: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        rise = (6 * (f3 - f0) - 2 * (height * far[0] + width * far[1])) / cube
        p, q = along / height + height * rise, across / width + width * rise
        return (c * p - b * q) / determinant, (a * q - b * p) / determinant

    h0, w0 = on_diagonal(low - 2 * h2, left - 2 * w1, (h3, w3))
    h1, w1 = (high - 2 * h3) / 4, (left - 2 * w0) / 4
    h2, w2 = (low - 2 * h0) / 4, (right - 2 * w3) / 4
    h3, w3 = on_diagonal(high - 2 * h1, right - 2 * w2, (h0, w0))
    return np.stack(np.broadcast_arrays(h0, w0, h1, w1, h2, w2, h3, w3), axis=-2)


_Net: TypeAlias = "dict[tuple[int, int, int, int], Floats]"


def _control_net(values: tuple[Floats, Floats, Floats], rises: tuple[tuple[Floats, Floats], ...]) -> _Net:
    """Return the Bezier ordinates of a triangle that is cut in three at its centroid.

    `rises`: of each vertex, towards the other two in cyclic order where 0 sees (1, 2), 1 sees (0, 2), 2 sees (0, 1).
    """
    f1, f2, f3 = values
    (d12, d13), (d21, d23), (d31, d32) = rises
    c2100, c2010 = f1 + d12 / 3, f1 + d13 / 3
    c1200, c0210 = f2 + d21 / 3, f2 + d23 / 3
    c1020, c0120 = f3 + d31 / 3, f3 + d32 / 3
    c2001, c0201, c0021 = (c2100 + c2010 + f1) / 3, (c1200 + c0210 + f2) / 3, (c1020 + c0120 + f3) / 3
    c0111 = _across(c0201, c0021, (f2, c0210, c0120, f3))
    c1011 = _across(c0021, c2001, (f3, c1020, c2010, f1))
    c1101 = _across(c2001, c0201, (f1, c2100, c1200, f2))
    c1002, c0102, c0012 = (
        (c1101 + c1011 + c2001) / 3,
        (c1101 + c0111 + c0201) / 3,
        (c1011 + c0111 + c0021) / 3,
    )
    return {
        (3, 0, 0, 0): f1, (0, 3, 0, 0): f2, (0, 0, 3, 0): f3, (0, 0, 0, 3): (c1002 + c0102 + c0012) / 3,
        (2, 1, 0, 0): c2100, (2, 0, 1, 0): c2010, (1, 2, 0, 0): c1200, (0, 2, 1, 0): c0210,
        (1, 0, 2, 0): c1020, (0, 1, 2, 0): c0120, (2, 0, 0, 1): c2001, (0, 2, 0, 1): c0201,
        (0, 0, 2, 1): c0021, (0, 1, 1, 1): c0111, (1, 0, 1, 1): c1011, (1, 1, 0, 1): c1101,
        (1, 0, 0, 2): c1002, (0, 1, 0, 2): c0102, (0, 0, 1, 2): c0012,
    }  # fmt: skip


def _across(inner_a: Floats, inner_b: Floats, edge: tuple[Floats, Floats, Floats, Floats]) -> Floats:
    """Return the ordinate beside an edge that makes the slope across it linear along it."""
    a, b, c, d = edge
    return (-(d - 3 * c + 3 * b - a) / 2 + (-a + 2 * b - c + inner_a + inner_b)) / 2


def _bernstein(net: _Net, weights: tuple[Floats, Floats, Floats]) -> Floats:
    least = np.minimum(np.minimum(*weights[:2]), weights[2])
    four = (*(weight - least for weight in weights), 3 * least)
    total: Floats = np.zeros_like(least)
    for exponents, ordinate in net.items():
        term: Floats = ordinate * (6 // prod(map(factorial, exponents)))
        for weight, exponent in zip(four, exponents, strict=True):
            for _ in range(exponent):
                term = term * weight
        total = total + term
    return total
