"""What servers count from their start on, as Prometheus keeps it, and what two looks at it tell. Pure.

A counter that starts anew, for its server did, is no loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003 - msgspec reads the fields' types

from msgspec import Struct


class Histogram(Struct, frozen=True):
    """Observations, by the upper bound of the bucket they fell in."""

    buckets: dict[float, float] = {}
    sum: float = 0.0

    @classmethod
    def of(cls, cumulated: Mapping[float, float], sum_: float, count: float | None) -> Histogram:
        """Return the histogram of counts that each include all lower buckets; without buckets, of the count alone."""
        buckets, below = {}, 0.0
        for bound, total in sorted(cumulated.items()):
            buckets[bound] = max(0.0, total - below)
            below = max(below, total)
        if count is not None and math.inf not in buckets:
            buckets[math.inf] = max(0.0, count - below)
        return cls(buckets, sum_)

    @property
    def count(self) -> float:
        """Number of observations."""
        return sum(self.buckets.values())

    @property
    def mean(self) -> float:
        """Mean of the observations; there must be one."""
        return self.sum / self.count

    def __add__(self, other: Histogram) -> Histogram:
        bounds = self.buckets.keys() | other.buckets.keys()
        merged = {bound: self.buckets.get(bound, 0.0) + other.buckets.get(bound, 0.0) for bound in bounds}
        return Histogram(merged, self.sum + other.sum)

    def since(self, earlier: Histogram) -> Histogram:
        """Return what was observed after an earlier look at the same histogram."""
        new = {bound: max(0.0, n - earlier.buckets.get(bound, 0.0)) for bound, n in self.buckets.items()}
        return Histogram(new, max(0.0, self.sum - earlier.sum))

    def quantile(self, share: float) -> float:
        """Return the value that this share of the observations does not exceed, taking each bucket as evenly filled.

        Of observations above the last finite bound nothing more is known: that bound is returned. What is sure all the same
        is that no more than a tenth of them can exceed ten times their mean, and so on.
        """
        wanted, below, lower = share * self.count, 0.0, 0.0
        for bound, count in sorted(self.buckets.items()):
            if math.isinf(bound):
                break
            if count and below + count >= wanted:
                lower += (bound - lower) * max(0.0, wanted - below) / count
                break
            below, lower = below + count, bound
        return min(lower, self.mean / (1 - share)) if share < 1 else lower


class Counted(Struct, frozen=True, kw_only=True):
    """What a server has counted since its start; or, with `seconds`, what it counted between two looks."""

    taken: float = 0.0  # when, on some clock of its machine that does not jump
    counts: Mapping[str, float] = {}
    latencies: Mapping[str, Histogram] = {}
    started: float | None = None  # what tells one start of the server from another
    seconds: float = 0.0

    def continues(self, earlier: Counted) -> bool:
        """Tell whether the same process counted on: no counter went back."""
        if self.started != earlier.started:
            return False
        counted = all(
            self.counts[name] >= earlier.counts[name] for name in self.counts.keys() & earlier.counts.keys()
        )
        return counted and all(
            self.latencies[name].count >= earlier.latencies[name].count
            for name in self.latencies.keys() & earlier.latencies.keys()
        )

    def since(self, earlier: Counted) -> Counted:
        """Return what was counted in between; after a restart, what has been counted since."""
        before = earlier if self.continues(earlier) else Counted()
        return Counted(
            counts={name: value - before.counts.get(name, 0.0) for name, value in self.counts.items()},
            latencies={
                name: histogram.since(before.latencies.get(name, Histogram()))
                for name, histogram in self.latencies.items()
            },
            seconds=max(self.taken - earlier.taken, 1e-9),
        )
