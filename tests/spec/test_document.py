"""YAML 1.2 meaning, positions, and files that are not what they should be."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import ConfigError, DeploymentError, Problem
from aegis.spec.document import MAX_BYTES, MAX_VALUES, parse_document, read_document


def refused(text: str) -> Problem:
    with pytest.raises(DeploymentError) as error:
        parse_document(text, "f.yaml")
    (problem,) = error.value.problems
    return problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(word, word) for word in ("01:00:00", "12:00:00", "190:20:30", "no", "yes", "on", "off", "y", "N")],
        *[
            (word, word)
            for word in ("1_000", "0b11", "2024-01-01", "=", "1e", ".", "+", "0x", "0o8", "1.2.3")
        ],
        *[("true", True), ("True", True), ("FALSE", False)],
        *[("", None), ("~", None), ("null", None), ("NULL", None)],
        *[("12", 12), ("-12", -12), ("+12", 12), ("0o17", 15), ("0x1F", 31), ("0123", 123)],
        *[("1e5", 1e5), ("1.", 1.0), (".5", 0.5), ("-1.5E-3", -0.0015), ("-.INF", float("-inf"))],
        *[("'12'", "12"), ('"true"', "true"), ("!!str 12", "12"), ("!!str null", "null"), ("|\n  12", "12")],
        ("[1, no]", [1, "no"]),
        ("{no: yes, 1: x, ~: z}", {"no": "yes", "1": "x", "~": "z"}),
        ("!!python/object/apply:os.system [x]", ["x"]),  # a tag on a list makes nothing happen
    ],
)
def test_plain_text_means_what_yaml_1_2_says(text: str, value: Any) -> None:
    document = parse_document(f"key: {text}", "f.yaml")
    assert document.value == {"key": value}
    assert type(document.value["key"]) is type(value)
    assert not document.problems


def test_numbers_keep_their_text() -> None:
    document = parse_document("a: 1e5\nb: [0123, '1']\nc: true\nd: null", "f.yaml")
    assert document.texts == {("a",): "1e5", ("b", 0): "0123", ("c",): "true"}


def test_every_value_knows_its_line() -> None:
    text = "# head\na: 1\nb:\n  - x\n  - c: 2\n    d:\n      - y\n\ne: |\n  text\nf: {g: 1,\n    h: 2}\n"
    document = parse_document(text, "f.yaml")
    lines = {
        ("a",): 2,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 1, "c"): 5,
        ("b", 1, "d", 0): 7,
        ("e",): 9,
        ("f", "g"): 11,
        ("f", "h"): 12,
    }
    assert {path: document.where(path) for path in lines} == {
        path: f"f.yaml:{line}" for path, line in lines.items()
    }
    assert document.where(("b", 1, "missing", "deeper")) == "f.yaml:5"
    assert document.where(()) == "f.yaml:2"


def test_aliases_stand_for_their_values() -> None:
    document = parse_document("a: &x [1, 2]\nb: *x\nc: {d: *x}\n", "f.yaml")
    assert document.value == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}
    assert document.where(("b",)) == "f.yaml:2"


@pytest.mark.parametrize("text", ["a: &x [*x]", "&x {a: *x}", "a: &x {b: [{c: *x}]}"])
def test_an_alias_cycle_is_a_problem(text: str) -> None:
    (problem,) = parse_document(text, "f.yaml").problems
    assert problem == Problem("f.yaml:1", "an alias that contains itself")


def test_a_bomb_of_anchors_is_stopped() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert refused("\n".join(lines)).message == f"more than {MAX_VALUES} values"


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 60 + "]" * 60, "a: " + "{b: " * 100_000, "- " * 60])
def test_deep_nesting_does_not_overflow_the_stack(text: str) -> None:
    assert refused(text) == Problem("f.yaml:1", "nested more than 50 levels deep")


def test_duplicate_keys_are_problems_and_the_first_counts() -> None:
    document = parse_document("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n", "f.yaml")
    assert document.value == {"a": 1, "b": {"c": 1}}
    assert document.problems == (
        Problem("f.yaml:4", "`c` is given twice", "first on line 3"),
        Problem("f.yaml:5", "`a` is given twice", "first on line 1"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!int foo", "`foo` cannot be read as tag:yaml.org,2002:int"),
        ("a: !!bool yes", "`yes` cannot be read as tag:yaml.org,2002:bool"),
        ("a: !foo bar", "`bar` cannot be read as !foo"),
        ("a: " + "9" * 5000, f"`{'9' * 60}` cannot be read as tag:yaml.org,2002:int"),
        ('a: "x\\0"', "a NUL character, which no program can be given"),
        ("? [a]\n: b", "a key has to be text"),
    ],
)
def test_values_that_cannot_be(text: str, message: str) -> None:
    (problem,) = parse_document(text, "f.yaml").problems
    assert (problem.where, problem.message) == ("f.yaml:1", message)


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("a:\n  b: 1\n\tc: 2", "f.yaml:3", "a tab is used for indentation", "use spaces"),
        ("a:\n \t- b", "f.yaml:2", "a tab is used for indentation", "use spaces"),
        ("a: 1\nb: [c, d\ne: 2\n", "f.yaml:3", "did not find expected ',' or ']'", "it begins on line 2"),
        ("a: 'x\nb: 1\n", "f.yaml:3", "found unexpected end of stream", "it begins on line 1"),
        ("a: b: c", "f.yaml:1", "mapping values are not allowed", "colon"),
        ("a: @x", "f.yaml:1", "found character that cannot start any token", None),
        ("a: *x", "f.yaml:1", "found undefined alias", None),
        ("a: 1\nb: \0", "f.yaml:2", "control characters are not allowed", None),
        ("a: 1\n---\nb: 1", "f.yaml:2", "expected a single document", "it begins on line 1"),
    ],
)
def test_syntax_errors_say_where_and_what(text: str, where: str, message: str, hint: str | None) -> None:
    problem = refused(text)
    assert problem.where == where
    assert message in problem.message
    assert (hint or "") in (problem.hint or "")
    assert hint or problem.hint is None


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n"])
def test_an_empty_file_has_no_value(text: str) -> None:
    assert parse_document(text, "f.yaml").value is None


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_document(file).value == {"a": 1, "b": 2}


def test_what_is_not_utf_8_is_found_by_line(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(DeploymentError) as error:
        read_document(file)
    assert error.value.problems == (Problem(f"{file}:2", "not UTF-8 text", "save it as UTF-8"),)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_document(tmp_path / name)


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="is no configuration file"):
        read_document(file)


def test_standard_input_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a: no\n")))
    document = read_document(Path("-"))
    assert document.value == {"a": "no"}
    assert document.where(("a",)) == "-:1"
