from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.planner.problem import Replica
from aegis.planner.search.matching import Pool, bounds, match

RATES = st.lists(
    st.tuples(st.floats(0.01, 100).map(lambda rate: round(rate, 3)), st.sampled_from([1, 2, 3, 4, 8])),
    min_size=1,
    max_size=4,
)


def one_by_one(
    prefill: tuple[float, int], decode: tuple[float, int], *, sizes: set[int], guide: bool
) -> tuple[int, int]:
    """Try replica after replica; the first one of the best wins."""
    best, chosen = 0.0, (0, 0)
    pairs = [(x, y) for x in range(1, 33) for y in range(1, 33)]
    for x, y in pairs if guide else [(x, y) for y, x in pairs]:
        gpus = x * prefill[1] + y * decode[1]
        if gpus in sizes:
            given, taken = prefill[0] * x * 0.9, decode[0] * y * 0.92
            if guide:  # the last bit of a product decides between equal replicas
                given, taken = prefill[0] * 0.9 * x, decode[0] * 0.92 * y
            rate = min(given, taken) / gpus
            if rate > best:
                best, chosen = rate, (x, y)
    return chosen


@given(RATES, RATES, st.sampled_from([4, 16, 32, 512]), st.booleans())
def test_every_pair_gets_the_replica_that_trying_all_of_them_finds(
    prefill: list[tuple[float, int]], decode: list[tuple[float, int]], total: int, guide: bool
) -> None:
    limits = bounds(Replica(), total_gpus=total, rules="guide" if guide else "current")
    found = match(_pool(prefill), _pool(decode), limits, scales=(0.9, 0.92))
    for row, before in enumerate(prefill):
        for column, after in enumerate(decode):
            expected = one_by_one(before, after, sizes=set(limits.sizes), guide=guide)
            workers = int(found.prefill_workers[row, column]), int(found.decode_workers[row, column])
            assert workers == expected
            assert found.gpus[row, column] == expected[0] * before[1] + expected[1] * after[1]


def test_the_rate_of_a_replica_is_that_of_its_slower_pool() -> None:
    limits = bounds(Replica(gpus=(8,)), total_gpus=32, rules="current")
    found = match(_pool([(4.27, 1)]), _pool([(17.186, 4)]), limits, scales=(0.9, 0.92))
    assert (found.prefill_workers[0, 0], found.decode_workers[0, 0], found.gpus[0, 0]) == (4, 1, 8)
    assert found.rate[0, 0] == pytest.approx(4.27 * 4 * 0.9)


@pytest.mark.parametrize(
    ("total", "most", "largest"), [(32, 128, 32), (512, 128, 128), (512, 0, 128), (64, 16, 16)]
)
def test_a_replica_is_no_larger_than_what_there_is(total: int, most: int, largest: int) -> None:
    assert bounds(Replica(max_gpus=most), total_gpus=total, rules="current").sizes[-1] == largest


def _pool(workers: list[tuple[float, int]]) -> Pool:
    rates, gpus = zip(*workers, strict=True)
    return Pool(np.array(rates), np.array(gpus))
