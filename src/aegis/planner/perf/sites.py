"""GEMM: every measured (n, k) is a site with a curve of its own over m; other sizes take their neighbours' utilisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.arrays import distinct
from aegis.planner.operations import NoData
from aegis.planner.perf.curves import Curve
from aegis.planner.perf.sol import per_gpu

if TYPE_CHECKING:
    from aegis.planner.operations import Floats, Gemm, Ints, Query
    from aegis.planner.perf.sol import SpeedOfLight
    from aegis.planner.tables.slices import Slice

_NEIGHBOURS = 4
_REACH = 2.0  # octaves
_TAIL = 3  # points whose median utilisation holds beyond the end of a curve
_K_LIMIT = 1 << 31


def rows_of(op: Gemm, at: Query) -> Ints:
    """Return m: the tokens that a GPU multiplies."""
    return at.sampled if op.sampled else per_gpu(at.tokens, op.token_split)


class Sites:
    """The GEMM table of one number format (the rules of aiconfigurator 0.12.0)."""

    def __init__(self, table: Slice, quant: str, light: SpeedOfLight, order: Slice | None = None) -> None:
        """Take rows sorted by (n, k, m); latencies under the speed of light are raised to it.

        Of sites that are equally near, those count that were measured first: `order` holds the places of all sites,
        by (n, k). Most tables were measured from the largest on.
        """
        n, k, self._m = table.axes
        self._latency = table.latency
        self._quant = quant
        self._light = light
        code, starts = np.unique(n * _K_LIMIT + k, return_index=True)
        self._code = code
        self._ends = np.append(starts, len(n))
        self._sizes = np.stack((n[starts], k[starts]))
        self._rank = -np.arange(len(code)) if order is None else np.rint(order.latency).astype(np.int64)
        self._first, self._last = self._m[starts], self._m[self._ends[1:] - 1]
        self._curves: dict[int, Curve] = {}
        self._near: dict[tuple[int, int, int], tuple[Ints, Floats]] = {}

    def __call__(self, m: Floats, n: int, k: int) -> Floats:
        """Return ms of (m, k) x (k, n) at each m.

        Raises:
            NoData: no measured size is near enough.
        """
        code = n * _K_LIMIT + k
        site = int(self._code.searchsorted(code))
        if site < len(self._code) and self._code[site] == code:
            return self._curve(site)(m)
        result = np.empty(m.shape)
        edges = distinct(np.concatenate((self._first, self._last + 1)))
        segment = edges.searchsorted(m, side="right")
        for each in distinct(segment):
            chosen = segment == each
            here = m[chosen]
            result[chosen] = self._light.gemm(self._quant, here, n, k) / self._utilisation(
                here, n, k, int(each)
            )
        return result

    def points(self) -> tuple[Ints, Ints, Ints, Floats]:
        """Return n, k, m and ms of all points."""
        n, k = np.repeat(self._sizes, np.diff(self._ends), axis=1)
        return n, k, self._m, np.maximum(self._latency, self._light.gemm(self._quant, self._m, n, k))

    def _curve(self, site: int) -> Curve:
        curve = self._curves.get(site)
        if curve is None:
            rows = slice(self._ends[site], self._ends[site + 1])
            n, k = (int(size) for size in self._sizes[:, site])
            m = self._m[rows].astype(np.float64)
            latency = np.maximum(self._latency[rows], self._light.gemm(self._quant, m, n, k))
            curve = Curve(m, latency, lambda x: self._light.gemm(self._quant, x, n, k), tail=_TAIL)
            self._curves[site] = curve
        return curve

    def _utilisation(self, m: Floats, n: int, k: int, segment: int) -> Floats:
        """Blend the nearest sites that were measured at these m (all of one segment)."""
        key = (n, k, segment)
        if key not in self._near:
            self._near[key] = self._neighbours(float(m.flat[0]), n, k)
        sites, weights = self._near[key]
        total = np.zeros(m.shape)
        for site, weight in zip(sites, weights, strict=True):
            size = self._sizes[:, site]
            total += (
                weight
                * self._light.gemm(self._quant, m, *size.astype(np.float64))
                / self._curve(int(site))(m)
            )
        return np.asarray(total / weights.sum())

    def _neighbours(self, m: float, n: int, k: int) -> tuple[Ints, Floats]:
        """Return sites within two octaves, or, past the end of one axis, near on the other; and their weights."""
        covers = np.flatnonzero((self._first <= m) & (m <= self._last))
        if len(covers) == 0:
            covers = np.arange(len(self._code))
        sizes, wanted = self._sizes[:, covers], np.array([[n], [k]])
        gaps = np.abs(np.log2(sizes) - np.log2(wanted))
        distance = np.sqrt(np.square(gaps).sum(axis=0))
        near = distance <= _REACH
        if not near.any():
            over = (wanted > sizes.max(axis=1, keepdims=True)).ravel()
            under = (wanted < sizes.min(axis=1, keepdims=True)).any()
            if not under and over.sum() == 1:
                near = gaps[int(over[0])] <= _REACH
        if not near.any():
            raise NoData(
                f"no measured GEMM of {self._quant} is near n = {n}, k = {k}",
                hint="another tensor-parallel size, or --database-mode HYBRID",
            )
        order = np.flatnonzero(near)[np.lexsort((self._rank[covers][near], distance[near]))][:_NEIGHBOURS]
        return covers[order], 1 / (np.square(distance[order]) + 1e-12)
