"""Counts of observations in buckets, as Prometheus keeps them. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping


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
