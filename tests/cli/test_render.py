from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from aegis.cli.render import age, print_json, printable, table

if TYPE_CHECKING:
    from collections.abc import Sequence


def test_columns_are_aligned_and_lines_end_with_text() -> None:
    assert table(("NAME", "N"), [("a", 1), ("long name", 22)]) == "NAME       N\na          1\nlong name  22"


def test_a_table_without_rows_is_its_head() -> None:
    assert table(("NAME", "N"), []) == "NAME  N"


def test_wide_characters_take_two_columns() -> None:
    assert table(("A", "B"), [("日本", "x"), ("abcd", "y")]).splitlines() == ["A     B", "日本  x", "abcd  y"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", "a\\nb"), ("\x1b[31mred", "\\x1b[31mred"), ("é 🎉", "é 🎉"), ("\u202e", "\\u202e"), ("", "")],
)
def test_foreign_text_cannot_drive_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert table(("A",), [(text,)]).split("\n")[1:] == [shown]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (0.9, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (725, "12m05s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86_399, "23h59m"),
        (86_400, "1d00h"),
        (187_200, "2d04h"),
    ],
)
def test_ages_are_short(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize("value", [[], {"a": "é\n"}, [{"b": None}]])
def test_json_is_json(value: Sequence[object], capsys: pytest.CaptureFixture[str]) -> None:
    print_json(value)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == value
    assert printed.err == ""
