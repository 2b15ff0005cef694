"""Prompts of given lengths, and those of files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.bench.prompts import (
    PROBES,
    WORDS,
    Lengths,
    Tokens,
    fit,
    probe_text,
    random_prompts,
    read_custom,
    read_sharegpt,
)
from aegis.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def written(directory: Path, *rows: Any, lines: bool = True) -> Path:
    file = directory / "prompts; $(x) \n.json"
    file.write_text("\n".join(json.dumps(row) for row in rows) if lines else json.dumps(rows))
    return file


def talk(*turns: str) -> dict[str, Any]:
    return {"id": 1, "conversations": [{"from": "human", "value": turn} for turn in turns]}


def test_lengths_are_those_that_were_asked_for() -> None:
    prompts = random_prompts(5, Lengths(input=40, output=8), Tokens())
    assert [len(prompt.text.split()) for prompt in prompts] == [40] * 5
    assert {prompt.output_tokens for prompt in prompts} == {8}
    assert len({prompt.text[:20] for prompt in prompts}) == 5


def test_lengths_vary_as_vllm_varies_them() -> None:
    prompts = random_prompts(2000, Lengths(input=128, output=64, range_ratio=0.3), Tokens())
    lengths = {len(prompt.text.split()) for prompt in prompts}
    assert (min(lengths), max(lengths)) == (89, 167)  # "Sampling input_len from [89, 167]
    answers = {prompt.output_tokens for prompt in prompts}
    assert (min(answers), max(answers)) == (44, 84)  # and output_len from [44, 84]"


def test_a_prefix_is_the_same_for_all_and_comes_on_top() -> None:
    words = [prompt.text.split() for prompt in random_prompts(3, Lengths(input=4, prefix=10), Tokens())]
    assert {len(each) for each in words} == {14}
    assert len({tuple(each[:10]) for each in words}) == 1
    assert len({tuple(each[10:]) for each in words}) == 3


def test_the_seed_decides() -> None:
    assert random_prompts(3, Lengths(), Tokens(), 1) == random_prompts(3, Lengths(), Tokens(), 1)
    assert random_prompts(3, Lengths(), Tokens(), 1) != random_prompts(3, Lengths(), Tokens(), 2)


@given(st.floats(0.5, 5), st.integers(0, 40), st.integers(100, 5000))
def test_what_a_server_counts_is_met(per_word: float, fixed: int, wanted: int) -> None:
    found = fit([round(words * per_word) + fixed for words in PROBES])
    counted = found.words(wanted) * per_word + fixed
    assert counted == pytest.approx(wanted, rel=0.02, abs=per_word)


def test_a_server_that_counts_nothing_teaches_nothing() -> None:
    assert fit([0, 0]) == Tokens()


def test_probes_have_the_mix_of_random_prompts() -> None:
    assert len(probe_text(64).split()) == 64
    assert set(probe_text(len(WORDS)).split()) == set(WORDS)


@pytest.mark.parametrize(
    "lengths", [Lengths(input=0), Lengths(output=0), Lengths(prefix=-1), Lengths(range_ratio=1)]
)
def test_lengths_without_sense_are_refused(lengths: Lengths) -> None:
    with pytest.raises(ConfigError):
        random_prompts(1, lengths, Tokens())


@pytest.mark.parametrize("lines", [True, False])
def test_sharegpt(tmp_path: Path, lines: bool) -> None:
    long, answer = "many words " * 500, "an answer of some length"
    rows = [talk("what is it, then?", answer), talk("alone"), talk("hi", answer), talk(long, answer)]
    prompts = read_sharegpt(written(tmp_path, *rows, lines=lines), 3)
    assert [(prompt.text, prompt.output_tokens) for prompt in prompts] == [("what is it, then?", 6)] * 3


def test_sharegpt_with_answers_of_one_length(tmp_path: Path) -> None:
    (prompt,) = read_sharegpt(written(tmp_path, talk("what is it, then?", "no")), 1, output_tokens=2)
    assert prompt.output_tokens == 2


def test_custom(tmp_path: Path) -> None:
    file = written(tmp_path, {"prompt": "a"}, {"prompt": "b", "output_tokens": 3, "other": 1})
    assert [(prompt.text, prompt.output_tokens) for prompt in read_custom(file, 3, 9)] == [
        ("a", 9),
        ("b", 9),
        ("a", 9),
    ]


def test_custom_with_the_lengths_of_its_rows(tmp_path: Path) -> None:
    file = written(tmp_path, {"prompt": "b", "output_tokens": 3}, {"prompt": "a"})
    with pytest.raises(ConfigError, match=r":2: the row has no output_tokens"):
        read_custom(file, 1, -1)


@pytest.mark.parametrize("line", ["{", '{"prompt": 1}', "{}", "[]", '"\udcff"', "[" * 5000])
def test_a_row_that_is_none_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n\n' + line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(ConfigError, match=r"rows\.jsonl:3: "):
        read_custom(file, 1)


@pytest.mark.parametrize("read", [read_custom, read_sharegpt])
def test_all_lines_that_are_wrong_are_named_but_not_without_end(tmp_path: Path, read: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}[\n" * 3)
    with pytest.raises(ConfigError, match=r"(?s)rows\.jsonl:1: .*rows\.jsonl:2: .*rows\.jsonl:3: [^\n]*$"):
        read(file, 1)
    file.write_text("{}[\n" * 1000)
    with pytest.raises(ConfigError, match="980 more lines are wrong") as caught:
        read(file, 1)
    assert len(caught.value.message.splitlines()) == 21


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_custom(tmp_path / "none", 1)
    for read in (read_custom, read_sharegpt):
        with pytest.raises(ConfigError, match="holds no prompt"):
            read(written(tmp_path), 1)
