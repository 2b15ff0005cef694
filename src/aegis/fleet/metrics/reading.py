"""What one page of metrics says, in our words: the sums over its labels, whichever engine wrote it. Pure."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, get_args

from msgspec import Struct

from aegis.counts import Counted, Histogram
from aegis.engines import engine
from aegis.engines.base import METRICS
from aegis.fleet.metrics.exposition import Sample, samples
from aegis.spec.deployment import EngineName

if TYPE_CHECKING:
    from collections.abc import Iterable

NOW = ("running", "waiting", "swapped")
SHARES = ("kv_cache", "cpu_cache", "prefix_hit_rate")
LATENCIES = ("first_token", "token_to_token", "whole_request", "queue_time")
COUNTERS = tuple(name for name in METRICS if name not in {*NOW, *SHARES, *LATENCIES})
BAD_ENDS = ("abort", "error")  # vLLM counts them among its successes
RANKS = {"tp_rank", "pp_rank", "moe_ep_rank"}  # parts of one replica: each of them tells the same
CACHE_INFO, CACHE_SIZE = "vllm:cache_config_info", "sglang:max_total_num_tokens"
STARTED = "process_start_time_seconds"
NAME = re.compile(r"([^{]+)(?:\{(\w+)=([^}]*)\})?")


class Series(NamedTuple):
    """An engine's name of a quantity: a series, or those of its samples whose label has one of some values."""

    name: str
    label: str
    values: frozenset[str]


class Reading(Struct, frozen=True, kw_only=True):
    """One page, as it was at a moment of this machine's monotonic clock."""

    taken: float
    values: dict[str, float] = {}  # of the quantities that the page has
    reasons: dict[str, float] = {}  # requests that succeeded, by the reason of their end
    latencies: dict[str, Histogram] = {}
    capacity: float | None = None  # of the KV cache, in tokens
    started: float | None = None  # of the server's process, in epoch seconds

    @property
    def counted(self) -> Counted:
        """What of it is counted from the server's start on."""
        counters = {name: self.values[name] for name in COUNTERS if name in self.values}
        return Counted(taken=self.taken, counts=counters, latencies=self.latencies, started=self.started)


def read(page: str, taken: float) -> Reading:
    """Return what a page says; quantities that it does not have are left out."""
    found = {name: _replicas(lines) for name, lines in samples(page, _series_names()).items()}
    capacities = _capacities(found)
    values, latencies, reasons = {}, {}, {}
    for quantity, alternatives in _series().items():
        if quantity in LATENCIES:
            histograms = (_histogram(series.name, found) for series in alternatives)
            if histogram := next(filter(None, histograms), None):
                latencies[quantity] = histogram
            continue
        chosen = next(filter(None, (_selected(series, found) for series in alternatives)), None)
        if chosen is None:
            continue
        if quantity == "succeeded":
            reasons = _reasons(chosen)
            chosen = [sample for sample in chosen if sample.labels.get("finished_reason") not in BAD_ENDS]
        value = _share(chosen, capacities) if quantity in SHARES else sum(each.value for each in chosen)
        if value is not None and math.isfinite(value):
            values[quantity] = value
    started = found.get(STARTED)
    return Reading(
        taken=taken,
        values=values,
        reasons=reasons,
        latencies=latencies,
        capacity=sum(capacities.values()) or None,
        started=started[0].value if started else None,
    )


@cache
def _series() -> dict[str, tuple[Series, ...]]:
    """Return per quantity its names in all engines, for no page has those of two."""
    kinds = [engine(kind) for kind in get_args(EngineName)]
    return {
        quantity: tuple(dict.fromkeys(_parsed(name) for kind in kinds for name in kind.metrics[quantity]))
        for quantity in METRICS
    }


def _parsed(name: str) -> Series:
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(name)
    return Series(match[1], match[2] or "", frozenset((match[3] or "").split("|")))


@cache
def _series_names() -> frozenset[str]:
    names = {CACHE_INFO, CACHE_SIZE, STARTED}
    for quantity, alternatives in _series().items():
        endings = ("_bucket", "_sum", "_count") if quantity in LATENCIES else ("",)
        names |= {series.name + ending for series in alternatives for ending in endings}
    return frozenset(names)


def _replicas(lines: Iterable[Sample]) -> list[Sample]:
    """Return one sample per replica of the model: what its ranks tell alike counts once, as do SGLang's priorities."""
    found: dict[tuple[tuple[str, str], ...], Sample] = {}
    for sample in lines:
        if sample.labels.get("priority"):  # the sample without one is their sum
            continue
        labels = {name: value for name, value in sample.labels.items() if name not in RANKS}
        key = tuple(sorted(labels.items()))
        if key not in found or found[key].value < sample.value:
            found[key] = Sample(labels, sample.value)
    return list(found.values())


def _selected(series: Series, found: dict[str, list[Sample]]) -> list[Sample]:
    lines = found.get(series.name, [])
    if not series.label:
        return lines
    return [sample for sample in lines if sample.labels.get(series.label) in series.values]


def _histogram(name: str, found: dict[str, list[Sample]]) -> Histogram | None:
    cumulated: dict[float, float] = {}
    for sample in found.get(f"{name}_bucket", []):
        try:
            bound = float(sample.labels.get("le", ""))
        except ValueError:
            continue
        if not math.isnan(bound) and math.isfinite(sample.value):
            cumulated[bound] = cumulated.get(bound, 0.0) + sample.value
    total, count = (found.get(f"{name}_{part}", []) for part in ("sum", "count"))
    sum_ = sum(sample.value for sample in total)
    counted = sum(sample.value for sample in count)
    if not (cumulated or count) or not math.isfinite(sum_ + counted):
        return None
    return Histogram.of(cumulated, sum_, counted if count else None)


def _reasons(lines: Iterable[Sample]) -> dict[str, float]:
    reasons: dict[str, float] = {}
    for sample in lines:
        if reason := sample.labels.get("finished_reason"):
            reasons[reason] = reasons.get(reason, 0.0) + sample.value
    return reasons


def _replica(sample: Sample) -> str:
    """Return which data-parallel replica a sample is of."""
    return sample.labels.get("engine") or sample.labels.get("dp_rank") or ""


def _capacities(found: dict[str, list[Sample]]) -> dict[str, float]:
    """Return the tokens that fit into the KV cache of each replica, where the page says it."""
    sizes = found.get(CACHE_SIZE, [])
    capacities = {_replica(sample): sample.value for sample in sizes if math.isfinite(sample.value)}
    for sample in found.get(CACHE_INFO, []):
        blocks, size = sample.labels.get("num_gpu_blocks", ""), sample.labels.get("block_size", "")
        if blocks.isdecimal() and size.isdecimal():
            capacities[_replica(sample)] = float(blocks) * float(size)
    return capacities


def _share(lines: Iterable[Sample], capacities: dict[str, float]) -> float | None:
    """Return the mean share of the replicas, the larger cache weighing more where all sizes are known."""
    known = [sample for sample in lines if sample.value >= 0]  # -1: older vLLM without the feature
    if not known:
        return None
    weights = [capacities.get(_replica(sample), 0.0) for sample in known]
    if not all(weights):
        weights = [1.0] * len(known)
    return sum(sample.value * weight for sample, weight in zip(known, weights, strict=True)) / sum(weights)
