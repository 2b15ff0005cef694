"""Engine arguments, variables and binds as a command line has them: commas that separate, and commas that do not."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.spec.catalog.arguments import (
    File,
    as_words,
    canonical,
    parse_arguments,
    parse_variables,
    split_binds,
    split_variables,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            '--max-model-len=8192,--compilation-config={"a":1,"b":[1,2]},--enable-prefix-caching',
            {
                "--max-model-len": "8192",
                "--compilation-config": '{"a":1,"b":[1,2]}',
                "--enable-prefix-caching": True,
            },
        ),
        ("--a=1, --b=2 ,--c", {"--a": "1", "--b": "2", "--c": True}),
        ("--a 1 --b", {"--a": "1", "--b": True}),
        ("--a 1,--b 2", {"--a": "1", "--b": "2"}),
        ("-tp=4,-pp 2,-O3", {"--tensor-parallel-size": "4", "--pipeline-parallel-size": "2", "-O3": True}),
        ("--max_model_len=8", {"--max-model-len": "8"}),
        ("--a=x,y,z,--b", {"--a": "x,y,z", "--b": True}),
        ("--a=-1,--b -0.5", {"--a": "-1", "--b": "-0.5"}),
        ("--a=[1,-2],--b", {"--a": "[1,-2]", "--b": True}),
        ('--a={"x": "}, --no"},--b', {"--a": '{"x": "}, --no"}', "--b": True}),
        (r'--a={"x": "\"}"},--b', {"--a": r'{"x": "\"}"}', "--b": True}),
        ("--a='x, --y',--b", {"--a": "x, --y", "--b": True}),
        ('--a="x y" --b', {"--a": "x y", "--b": True}),
        ("--a=it's,--b", {"--a": "it's", "--b": True}),
        ("--a=x[1,--b", {"--a": "x[1", "--b": True}),
        ("--sizes 1 2 4 --b", {"--sizes": ["1", "2", "4"], "--b": True}),
        ("--a=,--b", {"--a": "", "--b": True}),
        ("--a=1,", {"--a": "1"}),
        ("--a=1,--a=2", {"--a": "2"}),
        ("--a=k=v", {"--a": "k=v"}),
        ("", {}),
    ],
)
def test_arguments(text: str, found: dict[str, Any]) -> None:
    assert parse_arguments(text, "vllm") == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8192", "no flag"),
        ("max-model-len=8", "no flag"),
        ("--a={", "bracket"),
        ('--a={"b": "', "bracket"),
        ("--a='b", "quote"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_arguments(text, "vllm")


@pytest.mark.parametrize(
    ("engine", "flag", "name"),
    [
        ("sglang", "--tp", "--tensor-parallel-size"),
        ("sglang", "--ep-size", "--expert-parallel-size"),
        ("vllm", "-q", "--quantization"),
        ("vllm", "--tp", "--tp"),
        ("sglang", "-q", "-q"),
    ],
)
def test_a_flag_has_one_name(engine: str, flag: str, name: str) -> None:
    assert canonical(engine, flag) == name


@pytest.mark.parametrize(
    ("value", "vllm", "sglang"),
    [
        (True, ["--x"], ["--x"]),
        (False, ["--no-x"], []),
        (8192, ["--x", "8192"], ["--x", "8192"]),
        (0.9, ["--x", "0.9"], ["--x", "0.9"]),
        (1e5, ["--x", "100000"], ["--x", "100000"]),
        (-1, ["--x=-1"], ["--x=-1"]),
        ("", ["--x", ""], ["--x", ""]),
        ("$(touch x); 'y'", ["--x", "$(touch x); 'y'"], ["--x", "$(touch x); 'y'"]),
        ([1, "a b"], ["--x", "1", "a b"], ["--x", "1", "a b"]),
        (
            {"level": 3, "b": [True]},
            ["--x", '{"level": 3, "b": [true]}'],
            ["--x", '{"level": 3, "b": [true]}'],
        ),
    ],
)
def test_words_of_a_command_line(value: Any, vllm: list[str], sglang: list[str]) -> None:
    assert list(as_words({"--x": value}, "vllm")) == vllm
    assert list(as_words({"--x": value}, "sglang")) == sglang


def test_a_negative_flag_that_is_false_is_nothing() -> None:
    assert as_words({"--no-x": False, "-O": "3", "-O3": True}, "vllm") == ("-O=3", "-O3")


flags = st.from_regex(r"--[a-z][a-z0-9-]{0,9}[a-z]", fullmatch=True)
values = st.one_of(
    st.just(True),
    st.from_regex(r"[a-z0-9._/:,]{1,12}[a-z0-9]", fullmatch=True),
    st.recursive(
        st.integers() | st.text(max_size=5) | st.booleans(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    )
    .filter(lambda value: isinstance(value, list | dict))
    .map(json.dumps),
)


@given(st.dictionaries(flags, values, max_size=5), st.sampled_from([",", ", ", " "]))
def test_what_was_joined_is_found_again(given_args: dict[str, Any], between: str) -> None:
    text = between.join(flag if value is True else f"{flag}={value}" for flag, value in given_args.items())
    assert parse_arguments(text, "sglang") == {
        canonical("sglang", flag): value for flag, value in given_args.items()
    }


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        as_words(parse_arguments(text, "vllm"), "vllm")
    with contextlib.suppress(ValueError):
        split_variables(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=1", [("A", "1")]),
        ("A=1,B=2, C=3", [("A", "1"), ("B", "2"), ("C", "3")]),
        ("A=b=c", [("A", "b=c")]),
        ("A=", [("A", "")]),
        ("A=two words", [("A", "two words")]),
        ("NO_PROXY=localhost,10.0.0.1,.x.org,B=2", [("NO_PROXY", "localhost,10.0.0.1,.x.org"), ("B", "2")]),
        ("CUDA_VISIBLE_DEVICES=0,1,2", [("CUDA_VISIBLE_DEVICES", "0,1,2")]),
        ('A="x,B=2",C=3', [("A", "x,B=2"), ("C", "3")]),
        ("A='/x,/y'", [("A", "/x,/y")]),
        ('A={"a": 1, "B": 2},B=2', [("A", '{"a": 1, "B": 2}'), ("B", "2")]),
        ("my.env", [File("my.env")]),
        ("vars,other", [File("vars"), File("other")]),
        ("A=1,my.env,B=2", [("A", "1"), File("my.env"), ("B", "2")]),
        ("A=1,/x/vars", [("A", "1"), File("/x/vars")]),
        ("A=1,~/vars,./v,../v", [("A", "1"), File("~/vars"), File("./v"), File("../v")]),
        ("A=$(touch x)", [("A", "$(touch x)")]),
        ("", []),
    ],
)
def test_variables(text: str, found: list[tuple[str, str] | File]) -> None:
    assert split_variables(text) == found


@pytest.mark.parametrize("text", ["=x", "1A=2", "A-B=1", " "])
def test_what_is_no_variable_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not NAME=VALUE"):
        split_variables(text)


def test_a_file_of_variables() -> None:
    text = "# head\n\nA=1\nexport B='two words'\nC=\"x\"\nD=a=b\n  E = no\n"
    with pytest.raises(ValueError, match=r"^7: this line"):
        parse_variables(text)
    assert parse_variables(text.replace("  E = no\n", "E=\n")) == {
        "A": "1",
        "B": "two words",
        "C": "x",
        "D": "a=b",
        "E": "",
    }


def test_a_wrong_line_is_not_repeated_for_it_may_hold_a_secret() -> None:
    with pytest.raises(ValueError, match="1: this line") as error:
        parse_variables("hf_secret")
    assert "hf_secret" not in str(error.value)


def test_binds() -> None:
    assert split_binds("/a:/b, /c,,") == ("/a:/b", "/c")
    assert split_binds("") == ()
