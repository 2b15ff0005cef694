from __future__ import annotations

import pytest

from aegis.mapper.files.progress import Counts, left_seconds


def test_the_rate_is_that_of_the_last_two_minutes() -> None:
    counts = Counts(0.0)
    assert counts.rates(1.0) is None
    for now in range(1, 301):
        counts.add(100 if now <= 100 else 20)
        rates = counts.rates(float(now))
    assert rates == pytest.approx((20.0, 1.0))


def test_what_is_left_goes_by_bytes_and_by_files_where_there_are_none() -> None:
    assert left_seconds(None, 100, 1) is None
    assert left_seconds((10.0, 1.0), 100, 1) == 10.0
    assert left_seconds((0.0, 0.5), 0, 4) == 8.0
    assert left_seconds((0.0, 0.0), 0, 4) is None
