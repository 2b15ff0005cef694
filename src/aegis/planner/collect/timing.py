"""How long a call takes: warmed up, often enough, the median."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SAMPLE = 2e-3  # s: shorter calls are repeated within a sample, so that the clock does not matter
_SAMPLES = (3, 15)
_TOTAL = 0.05  # s of samples that are enough
_LONG = 0.5  # s: a call that takes so long is measured twice


def median_ms(
    call: Callable[[], object], wait: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return ms of one call.

    Args:
        call: starts the work; it may return before the work is done.
        wait: returns when all work that was started is done.
        clock: seconds.
    """

    def sample(times: int) -> float:
        start = clock()
        for _ in range(times):
            call()
        wait()
        return (clock() - start) / times

    sample(1)  # compiles, allocates, fills caches
    first = sample(1)
    if first > _LONG:
        return min(first, sample(1)) * 1000
    times = max(1, min(1000, round(_SAMPLE / max(first, 1e-7))))
    found: list[float] = []
    while len(found) < _SAMPLES[0] or (sum(found) * times < _TOTAL and len(found) < _SAMPLES[1]):
        found.append(sample(times))
    return statistics.median(found) * 1000
