"""`vllm bench serve`: its arguments, and what the recordings of real runs say."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.api.targets import Target
from aegis.bench.question import Question
from aegis.bench.roots import tokenizer_of
from aegis.bench.serve import check_passed, endpoint_words, model_words, read_result, reason_of, result_of
from aegis.errors import ConfigError

RECORDED = Path(__file__).parents[1] / "fixtures" / "vllm"
TARGET = Target("n1", 8000, ("m",), "node1", "m-0")


def recorded(name: str) -> bytes:
    return (RECORDED / f"bench_{name}.json").read_bytes()


def test_a_real_result_becomes_figures() -> None:
    result = result_of(TARGET, "m", said=recorded("rate10"), error="")
    assert (result.endpoint, result.model, result.node, result.error) == ("n1:8000", "m", "node1", "")
    raw = json.loads(recorded("rate10"))
    assert result.figures["completed"] == 50
    assert result.figures["duration"] == raw["duration"]
    assert result.figures["p90_ttft_ms"] == raw["p90_ttft_ms"]
    assert result.figures["p99_e2el_ms"] == raw["p99_e2el_ms"]
    assert result.details == raw


def test_a_percentile_that_was_not_asked_for_is_missing_and_not_0() -> None:
    figures = result_of(TARGET, "m", said=recorded("inf_detailed"), error="").figures
    assert "p90_ttft_ms" not in figures
    assert figures["p99_ttft_ms"] > 0


@pytest.mark.parametrize("name", ["badmodel", "connrefused"])
def test_a_run_whose_requests_all_failed_is_an_error_though_vllm_ends_with_0(name: str) -> None:
    result = result_of(TARGET, "m", said=recorded(name), error="")
    assert result.error == "5 of 5 requests failed"
    assert set(result.figures) == {"completed", "failed", "duration"}
    assert not result.measured


def test_the_first_reason_is_told_where_vllm_saved_it() -> None:
    said = json.loads(recorded("rate10")) | {"completed": 49, "failed": 1}
    said["errors"] = ["", "Traceback\n  at x\nValueError: it broke\n"]
    result = result_of(TARGET, "m", said=json.dumps(said).encode(), error="")
    assert result.error == "1 of 50 requests failed: ValueError: it broke"
    assert result.figures["request_throughput"] > 0


def test_an_older_vllm_that_counts_no_failures() -> None:
    said = {"completed": 3, "num_prompts": 5, "duration": 1.0}
    assert result_of(TARGET, "m", said=json.dumps(said).encode(), error="").error == "2 of 5 requests failed"


@pytest.mark.parametrize("said", [None, b"", b"{", b"[]", b"{}", b'{"completed": "x"}', b"[" * 9000])
def test_what_is_no_result_is_told(said: bytes | None) -> None:
    result = result_of(TARGET, "m", said=said, error="")
    assert result.error == "vllm bench serve wrote no result"
    assert not result.figures


def test_what_is_no_number_becomes_null() -> None:
    found = read_result(b'{"completed": 1, "mean_ttft_ms": NaN, "list": [Infinity, {"a": NaN}]}')
    assert found == {"completed": 1, "mean_ttft_ms": None, "list": [None, {"a": None}]}


@given(
    st.binary()
    | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_any_bytes_are_a_result_or_none(said: bytes) -> None:
    result = result_of(TARGET, "m", said=said, error="")
    assert result.measured or result.error


def test_the_endpoint_is_always_named() -> None:
    words = endpoint_words(TARGET, "/a b", "3.json")
    assert words[:4] == ["--host", "n1", "--port", "8000"]
    assert words[4:] == ["--save-result", "--result-dir", "/a b", "--result-filename", "3.json"]


@pytest.mark.parametrize("flag", ["--port", "--base_url", "--host=x", "--result-dir", "--append-result"])
def test_arguments_that_would_measure_something_else_are_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match="after --"):
        check_passed(["--seed", "1", flag, "8000"])


def test_words_that_are_values_are_not_flags() -> None:
    check_passed(["--metadata", "port=1", "host"])


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        ((), ["--model", "m", "--tokenizer", "/weights"]),
        (("--tokenizer", "/mine"), ["--model", "m"]),
        (("--skip_tokenizer_init",), ["--model", "m"]),
        (("--model=/mine",), []),
    ],
)
def test_model_and_tokenizer_of_the_endpoint_unless_passed(passed: tuple[str, ...], words: list[str]) -> None:
    assert model_words("m", "/weights", passed) == words


def test_the_tokenizer_is_what_the_server_loaded(tmp_path: Path) -> None:
    assert tokenizer_of("m", None, elsewhere=False) == (None, "")
    assert tokenizer_of("m", "m", elsewhere=False) == (None, "")
    assert tokenizer_of("m", "org/name", elsewhere=False) == ("org/name", "")
    assert tokenizer_of("m", str(tmp_path), elsewhere=False) == (str(tmp_path), "")
    assert tokenizer_of("m", "/nowhere", elsewhere=True) == ("/nowhere", "")
    tokenizer, warning = tokenizer_of("m", "/nowhere", elsewhere=False)
    assert tokenizer is None
    assert "--tokenizer" in warning


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", ""),
        ("one\ntwo\n\n", "two"),
        ("usage: vllm\nvllm bench serve: error: no such thing\n", "vllm bench serve: error: no such thing"),
        (
            "Traceback\nValueError: here\n  0%|   | 0/5\r100%|###| 5/5\nwarnings.warn(leaked)\n",
            "ValueError: here",
        ),
        (
            "aegis: cannot run vllm: not found, or not executable",
            "aegis: cannot run vllm: not found, or not executable",
        ),
        ("x" * 1000, "x" * 299 + "…"),
    ],
)
def test_the_line_of_an_error_that_says_most(said: str, reason: str) -> None:
    assert reason_of(said.encode()) == reason


# ------------------------------------------------------------------------------------------- the load


def flags(question: Question) -> dict[str, str]:
    words = [*question.vllm_words(), ""]
    return {word: after for word, after in pairwise(words) if word.startswith("--")}


def test_the_same_load_in_vllms_words() -> None:
    asked = flags(
        Question(prompts=7, input_tokens=30, output_tokens=5, rate=2.5, burstiness=math.inf, chat=True)
    )
    assert asked["--num-prompts"] == "7"
    assert (asked["--random-input-len"], asked["--random-output-len"]) == ("30", "5")
    assert float(asked["--request-rate"]) == 2.5
    assert math.isfinite(float(asked["--burstiness"]))
    assert asked["--endpoint"] == "/v1/chat/completions"


def test_a_file_of_prompts_in_vllms_words() -> None:
    asked = flags(Question(dataset="jsonl", path="a b.jsonl", output_tokens=-1, concurrency=3))
    assert asked["--dataset-name"] == "custom"
    assert Path(asked["--dataset-path"]).is_absolute()
    assert (asked["--custom-output-len"], asked["--max-concurrency"]) == ("-1", "3")
    assert "--sharegpt-output-len" not in flags(Question(dataset="sharegpt", path="x"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dataset": "jsonl"}, "needs a file"),
        ({"path": "x"}, "reads no file"),
        ({"rate": 1.0, "concurrency": 1}, "exclude"),
        ({"output_tokens": 0}, "1 at least"),
        ({"output_tokens": -1}, "1 at least"),
    ],
)
def test_loads_without_a_meaning(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Question(**wrong)
