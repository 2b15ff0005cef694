"""Figures over time: rates, servers that start anew, percentiles, and how much is kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.registry.overview.history import (
    COARSE,
    COARSE_POINTS,
    FINE_POINTS,
    HOLD_SECONDS,
    POINT_SECONDS,
    History,
    Latencies,
    Meter,
    at_once,
    in_turn,
)
from aegis.registry.overview.model import Load, Point, Quantiles

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["at", "running", "prompt_tokens", "succeeded", "first_token", "token_to_token"])


def told(
    at: float, tokens: float, buckets: dict[str, float] | None = None, sum_: float = 0.0
) -> dict[str, Any]:
    first_token = {"sum": sum_, "buckets": buckets or {}}
    return {"at": at, "running": 2.0, "waiting": 1.0, "generation_tokens": tokens, "first_token": first_token}


def test_a_rate_needs_two_looks_and_goes_by_the_clock_of_the_agent() -> None:
    meter = Meter()
    assert meter.hear(told(1000.0, 50.0), 7.0, now=1.0) is None
    assert (meter.load.running, meter.load.generation_rate) == (2.0, None)
    meter.hear(told(1010.0, 350.0), 7.0, now=99.0)
    assert meter.load.generation_rate == 30.0
    meter.hear(told(1010.0, 350.0), 7.0, now=100.0)  # the same look, told again
    assert meter.load.generation_rate == 30.0


def test_a_server_that_started_anew_loses_no_token() -> None:
    meter = Meter()
    meter.hear(told(0.0, 1000.0, {"0.1": 10.0}, 1.0), 7.0, now=0.0)
    news = meter.hear(told(10.0, 200.0, {"0.1": 4.0}, 0.4), 8.0, now=10.0)
    assert news
    assert meter.load.generation_rate == 20.0
    assert news.latencies["first_token"].count == 4.0
    news = meter.hear(told(20.0, 50.0), 8.0, now=20.0)  # the same process id, but its counter went back
    assert meter.load.generation_rate == 5.0


def test_an_agent_whose_clock_went_back_tells_no_rate() -> None:
    meter = Meter()
    meter.hear(told(5000.0, 10.0), 7.0, now=0.0)
    assert meter.hear(told(3.0, 20.0), 7.0, now=10.0) is None
    assert meter.load.generation_rate is None
    meter.hear(told(13.0, 120.0), 7.0, now=20.0)
    assert meter.load.generation_rate == 10.0


def test_what_was_told_long_ago_is_not_of_now() -> None:
    meter = Meter()
    assert not meter.is_fresh(0.0)
    meter.hear(told(0.0, 1.0), 7.0, now=0.0)
    assert meter.is_fresh(HOLD_SECONDS)
    assert not meter.is_fresh(HOLD_SECONDS + 1.0)


def test_percentiles_are_of_what_was_observed_since_the_look_before() -> None:
    meter, latencies = Meter(), Latencies()
    meter.hear(told(0.0, 0.0, {"0.1": 1000.0, "5.0": 1000.0}, 3000.0), 7.0, now=0.0)
    news = meter.hear(told(10.0, 0.0, {"0.1": 1000.0, "1.0": 100.0, "5.0": 1000.0}, 3050.0), 7.0, now=10.0)
    assert news
    latencies.add(news)
    found = latencies.quantiles()["first_token"]
    assert found.count == 100.0
    assert found.p50 == pytest.approx(0.55)
    assert found.p99 <= 1.0
    latencies.turn()
    assert latencies.quantiles()["first_token"] == found  # agents tell every other interval
    latencies.turn()
    assert latencies.quantiles() == {}


@given(st.lists(st.tuples(st.dictionaries(NAMES | st.text(max_size=4), ANYTHING), st.floats()), max_size=4))
def test_whatever_an_agent_tells_is_taken(loads: list[tuple[dict[str, Any], float]]) -> None:
    meter, latencies = Meter(), Latencies()
    for number, (load, started) in enumerate(loads):
        if news := meter.hear(load, started, now=float(number)):
            latencies.add(news)
    latencies.quantiles()
    for name in Load.__struct_fields__:
        value = getattr(meter.load, name)
        assert value is None or math.isfinite(value)


def test_history_is_bounded_and_in_order() -> None:
    history = History()
    most = COARSE_POINTS + COARSE + FINE_POINTS
    for number in range(20_000):
        history.add(Point(time=number * POINT_SECONDS, running=float(number)))
        if number % 1000 == 0:
            assert len(history.points) <= most
    points = history.points
    times = [point.time for point in points]
    assert times == sorted(set(times))
    assert times[-FINE_POINTS:] == [number * POINT_SECONDS for number in range(20_000 - FINE_POINTS, 20_000)]
    assert times[1] - times[0] == COARSE * POINT_SECONDS
    assert all(point.running == pytest.approx(point.time / POINT_SECONDS, abs=1.0) for point in points)


def test_points_of_several_fleets_are_summed_and_of_several_times_averaged() -> None:
    some = Point(
        time=1.0,
        healthy=2,
        running=4.0,
        kv_cache=0.2,
        first_token=Quantiles(count=30.0, p50=1.0, p90=2.0, p99=3.0),
    )
    other = Point(
        time=2.0,
        healthy=4,
        running=8.0,
        kv_cache=0.4,
        first_token=Quantiles(count=10.0, p50=5.0, p90=6.0, p99=7.0),
    )
    together = at_once([some, other])
    assert (together.healthy, together.running, together.waiting) == (6, 12.0, None)
    assert together.kv_cache == pytest.approx(0.3)
    assert together.first_token == Quantiles(count=40.0, p50=2.0, p90=3.0, p99=4.0)
    mean = in_turn([some, other])
    assert (mean.healthy, mean.running, mean.waiting) == (3, 6.0, None)
