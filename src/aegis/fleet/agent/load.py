"""What an engine's page of metrics says of its load. Pure.

As `fleet/metrics/reading.py` reads such pages, for fewer quantities and without parsing what is not asked for.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

HISTOGRAMS = ("first_token", "token_to_token")
SHARES = ("kv_cache",)  # of which the mean counts, and not the sum
ENDINGS = ("_bucket", "_sum", "_count")
# A series, or those of its samples whose label has one of some values.
NAME = re.compile(r"([^{]+)(?:\{(\w+)=([^}]*)\})?")
RANK = re.compile(r'(?:tp|pp|moe_ep)_rank="[^"]*",?')  # parts of one replica: each of them tells the same
PARTIAL = re.compile(r'\bpriority="[^"]')  # SGLang: the sample without a priority is their sum
BAD_END = re.compile(r'\bfinished_reason="(?:abort|error)"')  # vLLM counts these among its successes
BOUND = re.compile(r'\ble="([^"]*)"')


class Sample(NamedTuple):
    """One line of a page."""

    labels: str  # as the page writes them
    value: float


def parse_metrics(text: str, names: dict[str, list[str]]) -> dict[str, Any]:
    """Return what a page says of each quantity: a number, or for a latency `{"sum": s, "buckets": {bound: count}}`.

    Args:
        text: a page in Prometheus' format.
        names: the engine's names of each quantity; the first that the page has is taken.
    """
    series = {
        group: [
            (found[1], found[2], (found[3] or "").split("|")) for found in map(NAME.fullmatch, each) if found
        ]
        for group, each in names.items()
    }
    page = _samples(text, set(_series_names(series)))
    load: dict[str, Any] = {}
    for group, alternatives in series.items():
        for name, label, values in alternatives:
            if group in HISTOGRAMS:
                told: Any = _histogram(page, name)
            else:
                told = _number(group, _labelled(page.get(name, []), label, values))
            if told is not None:
                load[group] = told
                break
    return load


def _series_names(series: dict[str, list[Any]]) -> Iterator[str]:
    for group, alternatives in series.items():
        for name, _, _ in alternatives:
            for ending in ENDINGS if group in HISTOGRAMS else ("",):
                yield name + ending


def _samples(text: str, names: set[str]) -> dict[str, list[Sample]]:
    found: dict[str, dict[str, float]] = {}
    for line in text.split("\n"):  # not splitlines: labels may hold other line separators
        name = line.partition("{")[0].partition(" ")[0]
        if name not in names:
            continue
        labels, _, rest = line[len(name) + 1 :].rpartition("}")
        try:
            value = float((rest if labels else line[len(name) :]).split()[0])
        except (ValueError, IndexError):
            continue
        if not math.isfinite(value) or PARTIAL.search(labels):  # JSON has no NaN
            continue
        labels = RANK.sub("", labels)
        replicas = found.setdefault(name, {})
        replicas[labels] = max(value, replicas.get(labels, value))
    return {name: [Sample(*each) for each in replicas.items()] for name, replicas in found.items()}


def _labelled(samples: list[Sample], label: str | None, values: list[str]) -> list[Sample]:
    if not label:
        return samples
    wanted = [f'{label}="{value}"' for value in values]
    return [sample for sample in samples if any(each in sample.labels for each in wanted)]


def _number(group: str, samples: list[Sample]) -> float | None:
    if group == "succeeded":
        samples = [sample for sample in samples if not BAD_END.search(sample.labels)]
    values = [sample.value for sample in samples if sample.value >= 0]  # -1: older vLLM without the feature
    if not values:
        return None
    return sum(values) / len(values) if group in SHARES else sum(values)


def _histogram(page: dict[str, list[Sample]], name: str) -> dict[str, Any] | None:
    """Return the counts of the buckets that are not empty, each without those of the lower ones, and where they begin."""
    cumulated: dict[float, float] = {}
    for labels, value in page.get(name + "_bucket", ()):
        said = BOUND.search(labels)
        try:
            bound = float(said[1]) if said else math.nan
        except ValueError:
            continue
        if not math.isnan(bound):
            cumulated[bound] = cumulated.get(bound, 0.0) + value
    if not cumulated:
        return None
    buckets: dict[str, float] = {}
    below, lower = 0.0, 0.0
    for bound, total in sorted(cumulated.items()):
        if total > below:
            buckets.setdefault(str(lower), 0.0)  # where this bucket begins
            buckets[str(bound)] = total - below
            below = total
        lower = bound
    return {"sum": sum(each.value for each in page.get(name + "_sum", ())), "buckets": buckets}
