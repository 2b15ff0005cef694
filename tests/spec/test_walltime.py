from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.spec.walltime import format_walltime, parse_walltime


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:01", 1),
        ("01:00:00", 3600),
        ("1:00:00", 3600),
        ("168:00:00", 604_800),
        ("2-12:00:00", 216_000),
        (" 12:00:00 ", 43_200),
    ],
)
def test_both_schedulers_forms_are_read(text: str, seconds: int) -> None:
    assert parse_walltime(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "30", "01:00", "1h", "01:60:00", "01:00:60", "-1:00:00", "01:00:00.5", "00:00:00"),
        *("0-00:00:00", "99999:00:00", "a:b:c", "01:00:00\n01:00:00"),
    ],
)
def test_what_two_people_would_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        parse_walltime(text)


@given(st.integers(1, 9999 * 3600))
def test_what_is_written_is_read_again(seconds: int) -> None:
    assert parse_walltime(format_walltime(seconds)) == seconds


def test_a_time_that_is_over_is_zero() -> None:
    assert format_walltime(-5) == "00:00:00"
