"""What answers mean for a row."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.mapper.answers import TOO_LONG, Again, Finished, judge
from aegis.mapper.load import read_load
from aegis.mapper.rows import Row

ROW = Row(4, 'a "key"\n', "/v1/chat/completions", "m", b"{}")


def told(status: int, body: Any, **more: Any) -> Finished | Again:
    return judge(ROW, status, body if isinstance(body, bytes) else json.dumps(body).encode(), **more)


def line(answer: Finished | Again) -> dict[str, Any]:
    assert isinstance(answer, Finished)
    assert b"\n" not in answer.line
    found: dict[str, Any] = json.loads(answer.line)
    return found


@given(indent=st.sampled_from([None, 2]), text=st.text(), usage=st.booleans())
def test_a_good_answer_is_kept_whole_on_one_line(indent: int | None, text: str, usage: bool) -> None:
    body = {"id": "x", "choices": [{"message": {"content": text}, "finish_reason": "stop"}], "n": 1.0}
    body |= {"usage": {"prompt_tokens": 3, "completion_tokens": 2}} if usage else {}
    answer = told(200, json.dumps(body, indent=indent).encode())
    assert line(answer) == {
        "id": "row-5",
        "custom_id": 'a "key"\n',
        "response": {"status_code": 200, "request_id": "x", "body": body},
        "error": None,
    }
    assert isinstance(answer, Finished)
    assert (answer.failed, answer.prompt_tokens, answer.completion_tokens) == (
        (False, 3, 2) if usage else (False, 0, 0)
    )


def test_embeddings_have_no_completion() -> None:
    answer = told(
        200, {"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": None}}
    )
    assert isinstance(answer, Finished)
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 0)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>proxy</html>",
        b'{"id": ',
        b"[]",
        b"\xff",
        {"choices": [{"finish_reason": "stop"}, {"finish_reason": "abort"}]},
    ],
)
def test_an_answer_that_is_none_is_asked_for_again(body: Any) -> None:
    answer = told(200, body)
    assert isinstance(answer, Again)
    assert answer.word == "failed"


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"error": {"message": "no", "type": "BadRequestError", "code": 400}}, "BadRequestError", "no"),
        ({"object": "error", "message": "no", "type": "Bad", "code": 400}, "Bad", "no"),
        ({"error": {"message": "no", "code": "invalid_value"}}, "invalid_value", "no"),
        ({"error": "no"}, "http_400", "no"),
        ({"detail": "no"}, "http_400", "no"),
        (b"plain", "http_400", "plain"),
        (b"", "http_400", "HTTP 400"),
        (b"[1]", "http_400", "[1]"),
    ],
)
def test_errors_of_every_shape(body: Any, code: str, message: str) -> None:
    answer = told(400, body)
    assert line(answer) == {
        "id": "row-5",
        "custom_id": 'a "key"\n',
        "response": None,
        "error": {"code": code, "message": message, "status": 400},
    }
    assert isinstance(answer, Finished)
    assert answer.failed


@pytest.mark.parametrize(
    "message",
    [
        # vLLM, old and new; SGLang; OpenAI
        "This model's maximum context length is 2048 tokens. However, you requested 4000 tokens",
        "You passed 900 input tokens and requested 200 output tokens. However, the model's context length is only 1024",
        "The decoder prompt (length 5000) is longer than the maximum model length of 2048.",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "Please reduce the length: context_length_exceeded",
    ],
)
def test_prompts_that_are_too_long_are_told_apart(message: str) -> None:
    assert (
        line(told(400, {"error": {"message": message, "type": "BadRequestError"}}))["error"]["code"]
        == TOO_LONG
    )
    other = told(409, {"error": {"message": message, "type": "Conflict"}})
    assert line(other)["error"]["code"] == "Conflict"


@pytest.mark.parametrize(
    ("status", "word"),
    [
        *((429, "busy"), (503, "busy"), (500, "failed"), (502, "failed"), (408, "failed")),
        *((401, "refused"), (404, "missing")),
    ],
)
def test_what_another_try_may_mend(status: int, word: str) -> None:
    answer = told(status, b"", retry_after="3")
    assert isinstance(answer, Again)
    assert (answer.word, answer.wait) == (word, 3.0 if word == "busy" else None)
    assert answer.problem.status == status


def test_a_date_to_retry_after_is_left_aside() -> None:
    answer = told(429, b"", retry_after="Wed, 21 Oct 2026 07:28:00 GMT")
    assert isinstance(answer, Again)
    assert answer.wait is None


@given(st.integers(100, 599), st.binary())
def test_any_answer_has_a_meaning(status: int, body: bytes) -> None:
    answer = judge(ROW, status, body)
    if isinstance(answer, Finished):
        line(answer)


def test_queues_are_read_from_the_metrics_of_both_engines() -> None:
    vllm = b"""# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="a } b"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{reason="x"} 9.0
"""
    assert read_load(vllm.replace(b"a } b", b"a")) == (7, 2)
    assert read_load(b'sglang:num_running_reqs 5.0\nsglang:num_queue_reqs{a="b"} 1.0\n') == (5, 1)
    assert read_load(b"vllm:num_requests_running NaN\nother 1\n") is None
