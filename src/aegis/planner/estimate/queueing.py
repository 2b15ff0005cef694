"""Waiting in disaggregated serving: for a prefill worker, and for the KV cache to arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from aegis.planner.operations import Floats, Ints
    from aegis.planner.search.matching import Matching


def transfer(size: float, bandwidth: float, latency: float) -> float:
    """Return ms that `size` bytes take over a link of so many bytes/s, with so many seconds of latency."""
    return 1000 * (size / bandwidth + latency)


def waiting(service: Floats, workers: Floats, load: Floats) -> Floats:
    """Return ms that a request waits for one of `workers` that are busy for a share `load` of the time.

    M/D/c: independent arrivals, equal service times (ms). Source: Sakasegawa (1977), an approximation of M/M/c, half of
    which is what equal service times leave (Allen and Cunneen).
    """
    busy = np.clip(load, 0.0, 0.999)
    wait: Floats = service * busy ** (np.sqrt(2 * (workers + 1)) - 1) / (2 * workers * (1 - busy))
    return wait


def ttft(prefill: Floats, rate: Floats, matching: Matching) -> Floats:
    """Return ms to the first token: waiting and prefill, for all pairs (prefill, decode).

    `prefill` is ms of one step of a prefill worker, `rate` the requests/s that one of them can serve.
    """
    workers = np.maximum(matching.prefill_workers, 1)
    return prefill + waiting(prefill, workers, matching.rate / (rate * workers))


def concurrency(rate: Floats, latency: Floats) -> Ints:
    """Return how many requests are under way at so many requests/s that take so many ms each: Little's law."""
    return np.maximum(np.rint(rate * latency / 1000), 1).astype(np.int64)
