"""From two looks at each instance to the figures of them all. Pure; a counter that starts anew is no loss of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.counts import Counted, Histogram
from aegis.fleet.metrics.reading import COUNTERS, LATENCIES, NOW, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# The first names are vec-inf's.
NAMES = {
    "running": "requests_running",
    "waiting": "requests_waiting",
    "swapped": "requests_swapped",
    "kv_cache": "gpu_cache_usage",
    "cpu_cache": "cpu_cache_usage",
    "prompt_tokens": "total_prompt_tokens",
    "generation_tokens": "total_generation_tokens",
    "succeeded": "successful_requests_total",
    "aborted": "aborted_requests_total",
    "prefix_hits": "total_prefix_cache_hits",
    "prefix_queries": "total_prefix_cache_queries",
}
RATES = {
    "prompt_progress": "prompt_tokens_per_sec",
    "generation_progress": "generation_tokens_per_sec",
    "succeeded": "requests_per_sec",
}
LATENCY_NAMES = {
    "first_token": "time_to_first_token",
    "token_to_token": "time_per_output_token",
    "whole_request": "request_latency",
    "queue_time": "queue_time",
}


class Latency(Struct, frozen=True):
    """Seconds, over `count` observations; percentiles are as fine as the engine's buckets."""

    count: float
    mean: float
    p50: float
    p90: float
    p99: float


class Latencies(Struct, frozen=True):
    """One kind of latency; None where nothing was observed."""

    window: Latency | None  # between the two looks
    total: Latency | None  # since the servers started


class Figures(Struct, frozen=True, kw_only=True):
    """What instances do, together."""

    metrics: dict[str, float]  # vec-inf's keys and ours; what no instance tells is missing
    latencies: dict[str, Latencies]
    window_seconds: float | None  # between the two looks; None: there was one


def figures(looks: Sequence[tuple[Reading | None, Reading]]) -> Figures:
    """Return the figures of some instances, each with its earlier reading, where there is one, and the present one.

    Rates and the latencies of the window are those of the instances that were seen twice.
    """
    readings = [reading for _, reading in looks]
    changes = [reading.counted.since(earlier.counted) for earlier, reading in looks if earlier]
    metrics = {NAMES[name]: value for name in NAMES if (value := _combined(name, readings)) is not None}
    totals = {name: _sum(each.latencies.get(name) for each in readings) for name in LATENCIES}
    windows = {name: _sum(each.latencies.get(name) for each in changes) for name in LATENCIES}
    return Figures(
        metrics=metrics
        | _reasons(readings)
        | _ratios(readings, changes)
        | _rates(changes)
        | _vec_inf(totals),
        latencies={
            LATENCY_NAMES[name]: Latencies(_latency(windows[name]), _latency(totals[name]))
            for name in LATENCIES
        },
        window_seconds=max((change.seconds for change in changes), default=None),
    )


def _combined(name: str, readings: Sequence[Reading]) -> float | None:
    """Return the sum over the instances that tell it; of a share the mean, the larger cache weighing more."""
    telling = [reading for reading in readings if name in reading.values]
    if not telling:
        return None
    if name in NOW or name in COUNTERS:
        return sum(reading.values[name] for reading in telling)
    weights = [reading.capacity or 0.0 for reading in telling]
    if not all(weights):
        weights = [1.0] * len(telling)
    shares = (reading.values[name] * weight for reading, weight in zip(telling, weights, strict=True))
    return sum(shares) / sum(weights)


def _reasons(readings: Sequence[Reading]) -> dict[str, float]:
    found: dict[str, float] = {}
    for reading in readings:
        for reason, count in reading.reasons.items():
            name = f"finished_requests_{reason}"
            found[name] = found.get(name, 0.0) + count
    return found


def _ratios(readings: Sequence[Reading], changes: Sequence[Counted]) -> dict[str, float]:
    """Return the share of prompt tokens found in the prefix cache: since the start, and in the window."""
    overall = _ratio([reading.values for reading in readings])
    if overall is None:  # older vLLM tells the share alone
        overall = _combined("prefix_hit_rate", readings)
    window = _ratio([change.counts for change in changes])
    named = {"prefix_cache_hit_rate": overall, "prefix_cache_hit_rate_window": window}
    return {name: value for name, value in named.items() if value is not None}


def _ratio(counts: Sequence[Mapping[str, float]]) -> float | None:
    queries = sum(each.get("prefix_queries", 0.0) for each in counts)
    hits = sum(each.get("prefix_hits", 0.0) for each in counts)
    return min(1.0, hits / queries) if queries else None


def _rates(changes: Sequence[Counted]) -> dict[str, float]:
    return {
        key: sum(change.counts[name] / change.seconds for change in changes if name in change.counts)
        for name, key in RATES.items()
        if any(name in change.counts for change in changes)
    }


def _vec_inf(totals: Mapping[str, Histogram]) -> dict[str, float]:
    """Return the keys under which vec-inf tells latencies: sums since the start."""
    request, queue = totals["whole_request"], totals["queue_time"]
    found = {"queue_time_sum": queue.sum} if queue.buckets else {}
    if request.buckets:
        found |= {"request_latency_sum": request.sum, "request_latency_count": request.count}
        found["avg_request_latency"] = request.mean if request.count else 0.0
    return found


def _sum(histograms: Iterable[Histogram | None]) -> Histogram:
    return sum((each for each in histograms if each), Histogram())


def _latency(histogram: Histogram) -> Latency | None:
    if not histogram.count:
        return None
    shares = (histogram.quantile(share) for share in (0.5, 0.9, 0.99))
    return Latency(histogram.count, histogram.mean, *shares)
