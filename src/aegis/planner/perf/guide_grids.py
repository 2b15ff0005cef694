"""The fixed keys of the guide's time, and how a completed table is asked between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.operations import NoData
from aegis.planner.perf.clough_tocher import interpolate
from aegis.planner.perf.completion import Target

if TYPE_CHECKING:
    from aegis.planner.operations import Floats, Ints
    from aegis.planner.perf.completion import Lattice

_SIZES = (
    *(32, 64, 128, 256, 512, 768, 1024),
    *range(1536, 4097, 512),
    *range(5120, 8193, 1024),
    *range(10240, 16385, 2048),
    *range(20480, 32769, 4096),
    *range(40960, 65537, 8192),
    *(131072, 262144),
)
_TOKENS = (
    *(1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128),
    *range(160, 257, 32),
    *range(320, 513, 64),
    *range(640, 1025, 128),
    *(2**power for power in (11, 12, 13, 14, 15, 17, 19, 20, 24)),
)
_HEADS = (4, 5, 6, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 72, 96, 128)
_CONTEXT_LENGTHS = (
    *(2**power for power in range(4, 12)),
    *range(4096, 32768, 2048),
    *range(32768, 131072, 16384),
    *range(131072, 524288, 32768),
    *range(524288, 2**20 + 1, 65536),
)
_SHORT_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CONTEXT_BATCHES = (*_SHORT_BATCHES, 512, 384, 1024, 2048)  # added in this order then
_LATENT_BATCHES = (*_SHORT_BATCHES, 384, 512, 1024, 2048)
_BATCHES = (*_LATENT_BATCHES, 8192)
_LENGTHS = (*(2**power for power in range(19)), 2**24)

# Axes (x, y, z) of each table; a plane is interpolated in (y, z), then between planes.
TARGETS = {
    "gemm": Target((2, 0, 1), _TOKENS, _SIZES, _SIZES),
    "context_attention": Target((0, 1, 2), _HEADS, _CONTEXT_LENGTHS, _CONTEXT_BATCHES, root=True),
    "generation_attention": Target((0, 1, 2), _HEADS, _BATCHES, _LENGTHS),
    "context_mla": Target((0, 1, 2), (), _CONTEXT_LENGTHS, _LATENT_BATCHES, root=True),
    "generation_mla": Target((0, 1, 2), (), _BATCHES, _LENGTHS),
}


def bracket(keys: Ints, at: Ints | Floats, what: str) -> Ints:
    """Return the index of the lower of the two keys around each place.

    Raises:
        NoData: a place lies beyond the keys.
    """
    if at.size and (at.min() < keys[0] or at.max() > keys[-1]):
        low, high = int(at.min()), int(at.max())
        asked = f"{low}" if low == high else f"{low} to {high}"
        raise NoData(
            f"the guide's tables reach from {keys[0]} to {keys[-1]} {what}, not to {asked}",
            hint="take another split or load, or the current tables (--estimator aegis)",
        )
    lower: Ints = np.clip(np.searchsorted(keys, at, "right") - 1, 0, keys.size - 2)
    return lower


def between_planes(lattice: Lattice, x: int, what: str) -> tuple[Floats, float]:
    """Return the two planes (2, y, z) around x, and how far x is from the first towards the second."""
    keys = lattice.axes[0]
    if keys.size == 1 and keys[0] == x:
        return lattice.values[[0, 0]], 0.0
    low = int(bracket(keys, np.asarray(x), what))
    return lattice.values[low : low + 2], float((x - keys[low]) / (keys[low + 1] - keys[low]))


def in_planes(
    planes: Floats, axes: tuple[Ints, Ints], at: tuple[Ints, Ints], names: tuple[str, str], *, cubic: bool
) -> Floats:
    """Return the values of planes (p, y, z) at the places `at`: (p, *places), in ms."""
    (y_keys, z_keys), (y, z) = axes, np.broadcast_arrays(*at)
    j, k = bracket(y_keys, y, names[0]), bracket(z_keys, z, names[1])
    height, width = y_keys[j + 1] - y_keys[j], z_keys[k + 1] - z_keys[k]
    u, v = (y - y_keys[j]) / height, (z - z_keys[k]) / width
    if cubic:
        corners = np.stack([np.stack([planes[:, j + a, k + b] for b in (0, 1)], -1) for a in (0, 1)], -2)
        return interpolate(corners, (height, width), (u, v))
    low = planes[:, j, k] * (1 - v) + planes[:, j, k + 1] * v
    high = planes[:, j + 1, k] * (1 - v) + planes[:, j + 1, k + 1] * v
    values: Floats = low * (1 - u) + high * u
    return values


def on_curve(keys: Ints, values: Floats, at: Ints | Floats) -> Floats:
    """Return the values of a curve: linear through the two nearest keys, held where a falling curve ends.

    Beyond the upper end of a falling curve it is the last value but one that is held.

    Raises:
        NoData: fewer than two points.
    """
    if keys.size < 2:  # noqa: PLR2004 - two points make a line
        raise NoData(f"the table has {keys.size} measured sizes where it takes two to interpolate")
    high = np.clip(np.searchsorted(keys, at, "right"), 1, keys.size - 1)
    x0, x1, y0, y1 = keys[high - 1], keys[high], values[high - 1], values[high]
    held = (y1 < y0) & ((at < x0) | (at > x1))
    curve: Floats = np.where(held, y0, y0 + (y1 - y0) / (x1 - x0) * (at - x0))
    return curve
