"""In which order the sizes of GEMMs were measured: of sizes that are equally near to one that was not, the first count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aegis.planner.tables.slices import Slice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aegis.planner.tables.slices import Key

_LIMIT = 1 << 31  # of a size


def gemm_order(rows: dict[str, NDArray[Any]]) -> dict[Key, Slice]:
    """Return for each number format the place (from 1) of every (n, k), instead of a latency.

    The order is that of aiconfigurator 0.12.0 (Apache-2.0), whatever the order of rows: by the first row of m, then of
    n within it, then of k within these.
    """
    found: dict[Key, Slice] = {}
    for quant in np.unique(rows["quant"]):
        mine = rows["quant"] == quant
        m, n, k = (rows[name][mine].astype(np.int64) for name in ("m", "n", "k"))
        by_m = _first_row(m)
        by_n = _first_row(by_m * _LIMIT + n)
        walk = np.lexsort((np.arange(len(m)), by_n, by_m))
        sites, first = np.unique((n * _LIMIT + k)[walk], return_index=True)
        place = first.argsort().argsort() + 1
        found[quant.item(),] = Slice((sites // _LIMIT, sites % _LIMIT), place.astype(np.float64))
    return found


def _first_row(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each row the first row with the same value."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]
