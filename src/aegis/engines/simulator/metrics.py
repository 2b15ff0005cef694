"""vLLM's metrics: plain counters that cost next to nothing, shown through prometheus_client when asked for."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from aegis.engines.simulator.engine import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from aegis.engines.simulator import Settings
    from aegis.engines.simulator.engine import Batch

FINISHED: Final = ("stop", "length", "abort", "error", "repetition")

_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_LATENCY = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


def length_buckets(longest: int) -> tuple[float, ...]:
    """Return 1, 2, 5, 10, 20, ... up to the longest sequence."""
    series = (float(step * 10**power) for power in range(12) for step in (1, 2, 5))
    return tuple(bound for bound in series if bound <= longest)


class Histogram:
    """Counts per bucket."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulated counts with their upper bounds, as Prometheus wants them."""
        total = 0
        result: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            result.append((bound, total))
        return result


class Stats:
    """Everything that is counted."""

    def __init__(self, settings: Settings) -> None:
        self.created = time.time()
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.finished = dict.fromkeys(FINISHED, 0)
        self.ttft = Histogram(_TTFT)
        self.itl = Histogram(_ITL)
        self.e2e = Histogram(_LATENCY)
        self.queue = Histogram(_LATENCY)
        lengths = length_buckets(settings.max_model_len)
        self.request_prompt = Histogram(lengths)
        self.request_generation = Histogram(lengths)


class VllmCollector:
    """The counters and the batch under vLLM's names (a collector of prometheus_client)."""

    def __init__(self, settings: Settings, stats: Stats, batch: Batch) -> None:
        self._settings = settings
        self._stats = stats
        self._batch = batch
        self._labels = {"engine": "0", "model_name": settings.names[0]}

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415 - 30 ms, for the first scrape

        batch = self._batch
        for name, text, value, labels in (
            ("num_requests_running", "Requests in the batch.", batch.running, self._labels),
            ("num_requests_waiting", "Requests in the queue.", batch.waiting, self._labels),
            (
                "kv_cache_usage_perc",
                "KV cache in use; 1: all.",
                batch.kv_used / batch.kv_cache_tokens,
                self._labels,
            ),
            ("cache_config_info", "Configuration of the KV cache.", 1, cache_labels(self._settings)),
        ):
            family = GaugeMetricFamily(f"vllm:{name}", text, labels=list(labels))
            family.add_metric(list(labels.values()), value)
            yield family

    def _counters(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily  # noqa: PLC0415 - as above

        stats = self._stats
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_hits),
            ("num_preemptions", "Requests preempted (never).", 0),
        ):
            family = CounterMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), value, created=stats.created)
            yield family
        names = [*self._labels, "finished_reason"]
        family = CounterMetricFamily("vllm:request_success", "Requests finished, by reason.", labels=names)
        for reason, count in stats.finished.items():
            family.add_metric([*self._labels.values(), reason], count, created=stats.created)
        yield family

    def _histograms(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import HistogramMetricFamily  # noqa: PLC0415 - as above

        stats = self._stats
        for name, text, histogram in (
            ("time_to_first_token_seconds", "Seconds to the first token.", stats.ttft),
            ("inter_token_latency_seconds", "Seconds from token to token.", stats.itl),
            ("e2e_request_latency_seconds", "Seconds from arrival to the last token.", stats.e2e),
            ("request_queue_time_seconds", "Seconds in the queue.", stats.queue),
            ("request_prompt_tokens", "Prompt tokens of a request.", stats.request_prompt),
            ("request_generation_tokens", "Tokens generated for a request.", stats.request_generation),
        ):
            family = HistogramMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), histogram.buckets(), histogram.sum)
            family.add_sample(f"vllm:{name}_created", self._labels, stats.created)
            yield family


def cache_labels(settings: Settings) -> dict[str, str]:
    """Return the labels of vllm:cache_config_info that mean something here."""
    return {
        "block_size": str(BLOCK),
        "cache_dtype": "auto",
        "enable_prefix_caching": str(settings.prefix_cache),
        "engine": "0",
        "kv_cache_size_tokens": str(settings.kv_cache_tokens),
        "num_gpu_blocks": str(settings.kv_cache_tokens // BLOCK),
    }


class Exposition:
    """The text of /metrics, from a registry of its own."""

    def __init__(self, settings: Settings, stats: Stats, batch: Batch) -> None:
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - as above

        self._registry = CollectorRegistry()
        self._registry.register(VllmCollector(settings, stats, batch))

    def render(self) -> bytes:
        """Return the text in Prometheus' format 0.0.4."""
        from prometheus_client import generate_latest  # noqa: PLC0415 - as above

        return generate_latest(self._registry)
