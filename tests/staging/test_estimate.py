from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aegis.staging.estimate import ENOUGH, Rates, estimate, measured, note, rates_file

if TYPE_CHECKING:
    from pathlib import Path

RATES = Rates(read=1e9, link=10e9, write=3e9, latency=0, frame=10**6, per_file=0, start=0)


def test_the_slowest_stage_tells() -> None:
    found = estimate(10**10, 1, 1, RATES)
    assert (found.slowest, round(found.flow, 3)) == ("read", 10.0)
    assert estimate(10**10, 1, 1, RATES, readers=8).slowest == "write"


def test_nodes_add_only_the_fill() -> None:
    one, many = estimate(4 * 10**11, 1, 1, RATES), estimate(4 * 10**11, 1, 10_000, RATES)
    assert many.flow == one.flow
    assert many.fill == pytest.approx(1.0)
    assert many.seconds == pytest.approx(many.start + many.fill + many.files + many.flow)


def test_what_was_measured_is_used_the_next_time(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert measured(environ, "aurora", "mpi").whole is None
    note(environ, "aurora", "mpi", 10**10, 5.0)
    note(environ, "aurora", "tcp", 10**10, 10.0)
    note(environ, "aurora", "tcp", ENOUGH - 1, 0.001)  # too short to tell
    assert measured(environ, "aurora", "mpi").whole == 2e9
    assert measured(environ, "aurora", "tcp").whole == 1e9
    assert estimate(10**10, 1, 1, measured(environ, "aurora", "mpi")).slowest == "measured"


def test_a_file_of_rates_that_is_none_is_as_good_as_missing(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    rates_file(environ).parent.mkdir()
    rates_file(environ).write_text("[]")
    assert measured(environ, "aurora", "mpi").whole is None
    note({"XDG_CACHE_HOME": "/proc/nowhere"}, "aurora", "mpi", ENOUGH, 1.0)  # cannot be kept: no harm
