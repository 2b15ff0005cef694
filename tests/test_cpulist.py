from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.cpulist import format_cpulist, parse_cpulist
from aegis.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", ()),
        ("0", (0,)),
        ("1-3,105", (1, 2, 3, 105)),
        ("5,1-2, 2-3 ", (1, 2, 3, 5)),
        ("7-7", (7,)),
    ],
)
def test_lists_are_read(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpulist(text) == cpus


@pytest.mark.parametrize(
    ("cpus", "text"),
    [((), ""), ((3,), "3"), ((4, 3), "3-4"), ((1, 2, 3, 105, 3), "1-3,105"), ((0, 2, 4), "0,2,4")],
)
def test_lists_are_written_in_the_shortest_form(cpus: tuple[int, ...], text: str) -> None:
    assert format_cpulist(cpus) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a", "neither a number nor a range"),
        ("1,,2", "neither a number nor a range"),
        ("-3", "neither a number nor a range"),
        ("1-2-3", "neither a number nor a range"),
        ("1:2", "neither a number nor a range"),
        ("٣", "neither a number nor a range"),
        ("9-1", "runs backwards"),
        ("0-999999999", "highest CPU number"),
    ],
)
def test_what_is_no_list_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_cpulist(text)
    assert caught.value.hint


@given(st.sets(st.integers(0, 300)))
def test_round_trip(cpus: set[int]) -> None:
    assert parse_cpulist(format_cpulist(cpus)) == tuple(sorted(cpus))
