"""From what agents tell of their servers' load to figures over time. Pure, and bounded in memory."""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from aegis.counts import Counted, Histogram
from aegis.registry.overview.metadata import mapping, number
from aegis.registry.overview.model import Load, Point, Quantiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

POINT_SECONDS: Final = 5.0
FINE_POINTS: Final = 360  # half an hour
COARSE: Final = 12  # points that become one when they are older: a minute
COARSE_POINTS: Final = 330  # 5.5 hours more
HOLD_SECONDS: Final = 30.0  # a rate counts so long after it was told: agents tell every 10 s
WINDOW_POINTS: Final = 2  # intervals that percentiles look back: agents tell every other interval

NOW: Final = ("running", "waiting", "kv_cache")
RATES: Final = {
    "prompt_tokens": "prompt_rate",
    "generation_tokens": "generation_rate",
    "succeeded": "request_rate",
}
LATENCIES: Final = {"first_token": "first_token", "token_to_token": "inter_token"}  # agents' names, and ours
SUMS: Final = ("running", "waiting", "prompt_rate", "generation_rate", "request_rate")


def counted(load: Mapping[str, Any], started: float | None) -> Counted | None:
    """Return what an agent tells of a server's counters, or None where it does not say when it looked."""
    taken = number(load, "at")
    if taken is None:
        return None
    counts = {name: value for name in RATES if (value := number(load, name)) is not None}
    latencies = {name: told for name in LATENCIES if (told := _histogram(mapping(load, name))) is not None}
    return Counted(taken=taken, counts=counts, latencies=latencies, started=started)


def _histogram(told: Mapping[str, Any]) -> Histogram | None:
    buckets = mapping(told, "buckets")
    try:
        counts = {float(bound): number(buckets, bound) for bound in buckets}
    except (ValueError, TypeError):
        return None
    known = {bound: count for bound, count in counts.items() if count is not None and bound >= 0}
    return Histogram(known, number(told, "sum") or 0.0) if told else None


class Meter:
    """One server: its load now, with rates from the last two looks of its agent."""

    def __init__(self) -> None:
        self.load = Load()
        self._last: Counted | None = None
        self._heard = -math.inf

    def hear(self, load: Mapping[str, Any], started: float | None, now: float) -> Counted | None:
        """Take what an agent tells; return what the server counted since it told last, where that is new.

        Args:
            load: as `fleet/agent/load.py` makes it.
            started: what tells one start of the server from another.
            now: seconds of a clock that never jumps.
        """
        last = self._last
        if last and (last.taken, last.started) == (load.get("at"), started):  # told again
            return None
        told = counted(load, started)
        if told is None:
            return None
        self._last, self._heard = told, now
        news = told.since(last) if last and last.taken < told.taken else None
        rates = (
            {RATES[name]: round(value / news.seconds, 2) for name, value in news.counts.items()}
            if news
            else {}
        )
        self.load = Load(**{name: number(load, name) for name in NOW}, **rates)
        return news

    def is_fresh(self, now: float) -> bool:
        """Tell whether what it says is of now."""
        return now - self._heard <= HOLD_SECONDS


class Latencies:
    """What was observed in the last intervals."""

    def __init__(self) -> None:
        self._windows: deque[dict[str, Histogram]] = deque([{}], WINDOW_POINTS)

    def add(self, news: Counted) -> None:
        """Count observations to the present interval."""
        window = self._windows[-1]
        for name, histogram in news.latencies.items():
            if histogram.count:
                window[name] = window[name] + histogram if name in window else histogram

    def turn(self) -> None:
        """Begin a new interval."""
        self._windows.append({})

    def quantiles(self) -> dict[str, Quantiles]:
        """Return the percentiles of each latency that was observed."""
        found = {}
        for told, name in LATENCIES.items():
            histograms = [window[told] for window in self._windows if told in window]
            if histograms:
                found[name] = quantiles(sum(histograms[1:], histograms[0]))
        return found


def quantiles(histogram: Histogram) -> Quantiles:
    """Return the percentiles of observations; there must be one."""
    p50, p90, p99 = (float(f"{histogram.quantile(share):.4g}") for share in (0.5, 0.9, 0.99))
    return Quantiles(count=histogram.count, p50=p50, p90=p90, p99=p99)


def together(loads: Sequence[Load]) -> dict[str, Any]:
    """Return the sums of what loads tell; of shares the mean."""
    found: dict[str, Any] = {}
    for name in SUMS:
        told = [value for load in loads if (value := getattr(load, name)) is not None]
        found[name] = round(sum(told), 2) if told else None
    shares = [load.kv_cache for load in loads if load.kv_cache is not None]
    found["kv_cache"] = round(sum(shares) / len(shares), 4) if shares else None
    return found


def at_once(points: Sequence[Point]) -> Point:
    """Return the point of several fleets that serve one model at a time: sums, and percentiles by their weight."""
    return Point(
        time=max(point.time for point in points),
        healthy=sum(point.healthy for point in points),
        first_token=_weighted(point.first_token for point in points),
        inter_token=_weighted(point.inter_token for point in points),
        **together(points),
    )


def in_turn(points: Sequence[Point]) -> Point:
    """Return one point for some that follow each other: means, and percentiles by their weight."""
    found = at_once(points)
    means: dict[str, float] = {}
    for name in SUMS:
        told = [value for point in points if (value := getattr(point, name)) is not None]
        if told:
            means[name] = round(sum(told) / len(told), 2)
    healthy = round(sum(point.healthy for point in points) / len(points))
    return replace(found, time=points[len(points) // 2].time, healthy=healthy, **means)


def _weighted(each: Iterable[Quantiles | None]) -> Quantiles | None:
    known = [quantiles for quantiles in each if quantiles and quantiles.count]
    if len(known) < 2:  # noqa: PLR2004 - nothing to weigh
        return known[0] if known else None
    total = sum(quantiles.count for quantiles in known)

    def mean(of: Callable[[Quantiles], float]) -> float:
        return float(f"{sum(of(quantiles) * quantiles.count for quantiles in known) / total:.4g}")

    return Quantiles(
        count=total, p50=mean(lambda q: q.p50), p90=mean(lambda q: q.p90), p99=mean(lambda q: q.p99)
    )


class History:
    """The points of one model: all of the last half hour, one a minute of the hours before."""

    def __init__(self) -> None:
        self._coarse: deque[Point] = deque(maxlen=COARSE_POINTS)
        self._between: list[Point] = []  # too old to be fine, too few to be one
        self._fine: deque[Point] = deque()

    def add(self, point: Point) -> None:
        """Add the newest point."""
        self._fine.append(point)
        if len(self._fine) > FINE_POINTS:
            self._between.append(self._fine.popleft())
        if len(self._between) == COARSE:
            self._coarse.append(in_turn(self._between))
            self._between.clear()

    @property
    def points(self) -> tuple[Point, ...]:
        """All of them, oldest first."""
        return tuple(itertools.chain(self._coarse, self._between, self._fine))
