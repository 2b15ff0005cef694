"""Prompts with columns, and the bodies made of them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import ConfigError
from aegis.mapper.template import Template

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@given(before=TEXTS, value=TEXTS, after=TEXTS)
def test_text_and_values_come_through_as_they_are(before: str, value: str, after: str) -> None:
    template = Template(escaped(before) + "{a column}" + escaped(after), "completions")
    assert json.loads(template.body({"a column": value})) == {"prompt": before + value + after}


def test_a_lone_surrogate_is_no_text() -> None:
    with pytest.raises(ValueError, match="it is not UTF-8"):
        Template("{text}").body({"text": "\udcff"})


def test_kinds_have_their_bodies() -> None:
    values = {"text": "x {y}"}
    chat = Template("Sum: {text}", "chat", {"model": "m", "max_tokens": 3}, system="Be brief.")
    assert json.loads(chat.body(values)) == {
        "model": "m",
        "max_tokens": 3,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sum: x {y}"}],
    }
    assert (chat.path, chat.model, chat.columns) == ("/v1/chat/completions", "m", ("text",))
    assert json.loads(Template("{text}", "embeddings").body(values)) == {"input": "x {y}"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(5, "5"), (1.5, "1.5"), (True, "true"), ([1, "a"], '[1,"a"]'), ({"a": None}, '{"a":null}')],
)
def test_values_that_are_no_text(value: Any, text: str) -> None:
    assert json.loads(Template("{v}", "completions").body({"v": value})) == {"prompt": text}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("no column", "names no column"),
        ("a {text} and {", "'{' at character 14"),
        ("{text} }", "'}' at character 8"),
        ("{}", "names no column"),
    ],
)
def test_wrong_prompts_are_refused(prompt: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Template(prompt)
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"texts": "x"}, "there is no column 'text', did you mean 'texts'?"),
        ({}, "there is no column 'text': none"),
        ({"text": None}, "it has no value for 'text'"),
        ({"text": b"\0"}, "'text' is binary, not text"),
    ],
)
def test_rows_that_cannot_be_filled_in(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Template("{text}").body(values)


def test_columns_are_names_and_nothing_is_evaluated() -> None:
    with pytest.raises(ValueError, match=r"no column 'text\.__class__'"):
        Template("{text.__class__}").body({"text": "x"})
