"""Waiting in disaggregated serving: the formulas against a simulation of the two pools."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np
import pytest

from aegis.planner.estimate.pools import Pools, simulate_pools
from aegis.planner.estimate.queueing import concurrency, transfer, ttft, waiting
from aegis.planner.search.matching import Matching

PREFILL, TOKENS, STEP = 200.0, 511, 10.0


def pools(workers: int, busy: float, **changes: Any) -> Pools:
    """As many users as keep the prefill workers that busy, by Little's law."""
    rate = busy * workers / PREFILL
    latency = PREFILL + float(waited(workers, busy)) + STEP * TOKENS
    users = max(round(rate * latency), 1)
    return Pools(
        users, workers, PREFILL, transfer=0.0, steps=[STEP] * 2, decode_workers=1, tokens=TOKENS
    )._replace(**changes)


def waited(workers: int, busy: float) -> np.ndarray:
    return waiting(np.array(PREFILL), np.array(workers), np.array(busy))


def test_one_user_waits_for_nobody() -> None:
    seen = simulate_pools(pools(1, 0.01, transfer=30.0))
    assert seen.ttft == pytest.approx(PREFILL + 30)
    assert seen.tpot == pytest.approx(STEP, rel=0.01)
    assert seen.requests_per_s == pytest.approx(1000 / (230 + STEP * TOKENS), rel=0.01)


def test_requests_that_share_a_decode_worker_slow_each_other() -> None:
    steps = [0.0, 10.0, 20.0, 30.0]
    shared = simulate_pools(pools(3, 0.9, users=3, steps=steps, spread=0.0))
    assert shared.tpot == pytest.approx(30, rel=0.02)
    apart = simulate_pools(pools(3, 0.9, users=3, steps=steps, spread=0.0, decode_workers=3))
    assert apart.tpot == pytest.approx(10, rel=0.02)


def test_the_same_seed_gives_the_same() -> None:
    assert simulate_pools(pools(2, 0.7)) == simulate_pools(pools(2, 0.7))
    assert simulate_pools(pools(2, 0.7, seed=1)) != simulate_pools(pools(2, 0.7))


def test_waiting_grows_with_the_load_and_shrinks_with_the_workers() -> None:
    busy = np.array([0.1, 0.5, 0.8, 0.95])
    one, eight = (waiting(np.array(100.0), np.array(workers), busy) for workers in (1, 8))
    assert (np.diff(one) > 0).all()
    assert (eight < one).all()
    # M/D/1 is known exactly
    assert one == pytest.approx(100 * busy / (2 * (1 - busy)))
    assert np.isfinite(waiting(np.array(100.0), np.array(1), np.array(1.2)))


def test_waiting_by_load_is_nearer_to_the_simulation_than_a_factor() -> None:
    formula, factor = [], []
    for workers in (1, 2, 4, 8):
        for busy in (0.2, 0.4, 0.6, 0.8):
            seen = simulate_pools(pools(workers, busy, spread=0.3))
            formula.append(abs((PREFILL + float(waited(workers, busy))) / seen.ttft - 1))
            factor.append(abs(1.8 * PREFILL / seen.ttft - 1))
    assert median(formula) < 0.1
    assert median(factor) > 0.4


def test_the_time_that_the_cache_travels_is_seen() -> None:
    still, moving = (simulate_pools(pools(2, 0.5, transfer=ms)).ttft for ms in (0.0, 50.0))
    assert moving - still == pytest.approx(50, rel=0.2)
    assert transfer(2**30, 2**30, 1e-5) == pytest.approx(1000.01)


def test_all_pairs_of_pools_are_reckoned_at_once() -> None:
    workers = np.array([[2, 0], [4, 1]])
    matching = Matching(workers, workers, workers * 3, np.array([[8.0, 0.0], [10.0, 3.0]]))
    found = ttft(np.array([[100.0], [200.0]]), np.array([[10.0], [5.0]]), matching)
    assert found[0, 0] == pytest.approx(100 + float(waiting(np.array(100.0), np.array(2), np.array(0.4))))
    assert found[0, 1] == 100
    assert found[1] == pytest.approx(200 + waiting(np.array(200.0), np.array([4, 1]), np.array([0.5, 0.6])))


def test_requests_under_way_follow_from_rate_and_latency() -> None:
    assert concurrency(np.array([10.0, 0.01]), np.array([2000.0, 10.0])).tolist() == [20, 1]
