"""Rate matching: how many prefill workers feed how many decode workers, for all pairs at once."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aegis.planner.arrays import distinct

if TYPE_CHECKING:
    from aegis.planner.estimator import Rules
    from aegis.planner.operations import Floats, Ints
    from aegis.planner.problem import Replica


class Pool(NamedTuple):
    """Workers of one kind, one element each."""

    rate: Floats  # requests/s of one worker
    gpus: Ints  # of one worker


class Matching(NamedTuple):
    """The best replica of every pair: arrays (prefill, decode); 0 workers where none fits."""

    prefill_workers: Ints
    decode_workers: Ints
    gpus: Ints
    rate: Floats  # requests/s of the replica


class Bounds(NamedTuple):
    """Sizes of a replica that are allowed."""

    sizes: tuple[int, ...]
    prefill_workers: int
    decode_workers: int
    guide: bool  # which count runs outside, and what is multiplied first: rounding decides between equal replicas


def bounds(replica: Replica, *, total_gpus: int, rules: Rules) -> Bounds:
    """Return what a replica may be, on so many GPUs."""
    most = min(total_gpus, replica.max_gpus or total_gpus)
    return Bounds(
        tuple(size for size in replica.gpus if size <= most),
        replica.max_prefill_workers,
        replica.max_decode_workers,
        guide=rules == "guide",
    )


def match(prefill: Pool, decode: Pool, limits: Bounds, *, scales: tuple[float, float]) -> Matching:
    """Return for every pair the replica with the most requests/s of a GPU; `scales` lower both rates.

    The rate of a replica is the smaller one of its two pools (planner-model, section 8).
    """
    shape = (len(prefill.rate), len(decode.rate))
    counts = np.zeros((2, *shape), dtype=np.int64)
    gpus = np.zeros(shape, dtype=np.int64)
    rate = np.zeros(shape)
    for p_gpus in distinct(prefill.gpus):
        rows = np.flatnonzero(prefill.gpus == p_gpus)
        for d_gpus in distinct(decode.gpus):
            columns = np.flatnonzero(decode.gpus == d_gpus)
            x, y = _replicas(int(p_gpus), int(d_gpus), limits)
            if not len(x):
                continue
            size = x * p_gpus + y * d_gpus
            given = prefill.rate[rows, None] * x * scales[0]  # (rows, replicas)
            taken = decode.rate[columns, None] * y * scales[1]  # (columns, replicas)
            if limits.guide:
                lowered = prefill.rate[rows] * scales[0], decode.rate[columns] * scales[1]
                best = _most(lowered[0][:, None] * x, lowered[1][:, None] * y, size)
            else:
                best = _most(given, taken, size)
            at = np.ix_(rows, columns)
            counts[0][at], counts[1][at], gpus[at] = x[best], y[best], size[best]
            rate[at] = np.minimum(
                np.take_along_axis(given, best, axis=1), np.take_along_axis(taken, best.T, axis=1).T
            )
    return Matching(counts[0], counts[1], gpus, rate)


def _most(given: Floats, taken: Floats, size: Ints) -> Ints:
    """Return (rows, columns): which replica has the most requests/s of a GPU, the first of equals."""
    best = np.empty((len(given), len(taken)), dtype=np.int64)
    for row, rates in enumerate(given):  # tens of prefill workers: bounds the memory
        best[row] = np.argmax(np.minimum(rates, taken) / size, axis=1)
    return best


@lru_cache
def _replicas(prefill_gpus: int, decode_gpus: int, limits: Bounds) -> tuple[Ints, Ints]:
    """Return all (prefill workers, decode workers) of an allowed size, in the order in which they are tried."""
    x = np.arange(1, limits.prefill_workers + 1)
    y = np.arange(1, limits.decode_workers + 1)
    allowed = np.isin(x[:, None] * prefill_gpus + y * decode_gpus, limits.sizes)
    if limits.guide:
        first, second = np.nonzero(allowed)
        return x[first], y[second]
    second, first = np.nonzero(allowed.T)
    return x[first], y[second]
