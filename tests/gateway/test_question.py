"""What is read of requests, and what is said of those that cannot be."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.gateway import question
from aegis.gateway.question import BadQuestion, Question, read

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def said(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def prefixes(path: str = CHAT, **fields: Any) -> tuple[int, ...]:
    return read(path, body(**fields)).prefixes


def test_model_and_stream() -> None:
    found = read(CHAT, body(messages=[said("hi")], stream=True, temperature=0.5, tools=[{"a": [1, None]}]))
    assert (found.model, found.stream, found.include_usage, len(found.prefixes)) == ("m", True, False, 1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (False, False)),
        ({"stream": None}, (False, False)),
        ({"stream": "false"}, (False, False)),
        ({"stream": "true"}, (True, False)),
        ({"stream": 1}, (True, False)),
        ({"stream": [1]}, (False, False)),
        ({"stream": True, "stream_options": {"include_usage": True}}, (True, True)),
        ({"stream": True, "stream_options": {"include_usage": False}}, (True, False)),
        ({"stream": True, "stream_options": None}, (True, False)),
        ({"stream": True, "stream_options": "x"}, (True, False)),
        ({"stream": False, "stream_options": {"include_usage": True}}, (False, False)),
    ],
)
def test_what_engines_take_for_a_stream(fields: dict[str, Any], expected: tuple[bool, bool]) -> None:
    found = read("/v1/completions", body(prompt="x", **fields))
    assert (found.stream, found.include_usage) == expected


def test_the_next_turn_continues_the_conversation() -> None:
    turns = [said("You help.", "system"), said("hi"), said("hello", "assistant"), said("more")]
    first, second = prefixes(messages=turns[:2]), prefixes(messages=turns)
    assert second[:2] == first
    assert len(set(second)) == 4
    other = prefixes(messages=[turns[0], said("something else")])
    assert other[0] == first[0]
    assert other[1] != first[1]
    assert read(CHAT, body(messages=turns).replace(b'"m"', b'"k"')).prefixes[0] != first[0]


def test_of_a_long_conversation_the_beginning_and_the_end_are_kept() -> None:
    turns = [said(f"turn {number}") for number in range(200)]
    first, second = prefixes(messages=turns[:-2]), prefixes(messages=turns)
    assert len(first) == len(second) == question.FIRST + question.LAST
    assert first[-1] in second
    assert first[:4] == second[:4]


def test_the_system_prompt_of_other_dialects_comes_first() -> None:
    plain = prefixes("/v1/messages", messages=[said("hi")])
    one = prefixes("/v1/messages", system="be kind", messages=[said("hi")])
    two = prefixes("/v1/messages", system="be rude", messages=[said("hi")])
    assert len({plain, one, two}) == 3
    assert prefixes(RESPONSES, instructions="a", input="hi") != prefixes(
        RESPONSES, instructions="b", input="hi"
    )


def test_prompts_share_their_beginnings() -> None:
    base = "The same long beginning. " * 40
    one, two = (prefixes("/v1/completions", prompt=base + end) for end in ("What?", "Who?"))
    assert len(one) == 5  # 64, 128, 256, 512 bytes, all of it
    assert one[:4] == two[:4]
    assert one[4] != two[4]
    assert len(prefixes("/v1/completions", prompt="hi")) == 1
    assert prefixes("/v1/completions", prompt=list(range(1000))) != ()


def test_input_of_responses_is_read_like_messages() -> None:
    items = [said("hi"), said("hello", "assistant"), said("more")]
    assert prefixes(RESPONSES, input=items)[:1] == prefixes(RESPONSES, input=items[:1])
    assert len(prefixes(RESPONSES, input=items)) == 3
    assert len(prefixes(RESPONSES, input="x" * 200)) == 3


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/score", "/pooling"])
def test_what_continues_nothing_goes_anywhere(path: str) -> None:
    assert prefixes(path, input=["a" * 1000]) == ()


@pytest.mark.parametrize("value", [None, [], "", {}, 5, "text", [None], [[1]]])
def test_odd_messages_are_the_engine_s_to_judge(value: Any) -> None:
    for name in ("messages", "prompt", "input"):
        for path in (CHAT, RESPONSES):
            assert read(path, body(**{name: value})).model == "m"


def test_an_image_is_not_copied() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 8_000_000}}
    large = body(messages=[{"role": "user", "content": [image]}, said("what is it?")])
    read(CHAT, large)
    tracemalloc.start()
    try:
        found = read(CHAT, large)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.prefixes) == 2
    assert peak < 100_000
    other = body(messages=[{"role": "user", "content": [image]}, said("what else?")])
    assert read(CHAT, other).prefixes[0] == found.prefixes[0]
    assert read(CHAT, large.replace(b"AAAA", b"BBBB", 1)).prefixes[0] != found.prefixes[0]


@pytest.mark.parametrize(
    ("data", "kind", "message", "param"),
    [
        (b"", "application/json", "not valid JSON", None),
        (b"{", "application/json", "not valid JSON", None),
        (b'{"model": "m",}', "application/json; charset=utf-8", "not valid JSON", None),
        (b'{"model": "m"} x', "", "not valid JSON", None),
        (b' {"model":', "application/x-www-form-urlencoded", "not valid JSON", None),  # curl -d
        (b"[]", "application/json", "must be a JSON object", None),
        (b'"m"', "application/json", "must be a JSON object", None),
        (b"{}", "application/json", "'model' is missing", "model"),
        (b'{"model": null}', "application/json", "'model' is missing", "model"),
        (b'{"model": ""}', "application/json", "'model'", "model"),
        (b'{"model": 5}', "application/json", "'model' must be a string", "model"),
        (b'{"model": "\xff"}', "application/json", "UTF-8", None),
        (b"\xff\xfe{\0}\0", "application/json", "not valid JSON", None),
        (b"model=m&prompt=x", "application/x-www-form-urlencoded", "not application/x-www-form-url", None),
        (b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "", "nested too deeply", None),
        (b'{"model": "m", "x": ' + b"[" * 100_000, "", "nested too deeply", None),
    ],
)
def test_bad_bodies(data: bytes, kind: str, message: str, param: str | None) -> None:
    with pytest.raises(BadQuestion) as error:
        read(CHAT, data, kind)
    refusal = error.value.refusal
    assert refusal.status == 400
    assert json.loads(refusal.body) == {
        "error": {"message": refusal.message, "type": "invalid_request_error", "param": param, "code": None}
    }
    assert message in refusal.message


@given(st.binary() | st.text().map(str.encode))
def test_no_body_does_worse_than_to_be_refused(data: bytes) -> None:
    with pytest.raises(BadQuestion):
        read(CHAT, data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
FIELDS = st.sampled_from(["messages", "prompt", "input", "stream", "stream_options", "system", "x"])


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(FIELDS, JSON), st.sampled_from([CHAT, RESPONSES, "/v1/completions", "/v1/embeddings"]))
def test_any_json_with_a_model_is_read(fields: dict[str, Any], path: str) -> None:
    found = read(path, body(**fields))
    assert found.model == "m"
    assert found == read(path, body(**fields))


def form(*parts: tuple[str, str]) -> bytes:
    return b"".join(f"--B\r\n{head}\r\n\r\n{value}\r\n".encode() for head, value in parts) + b"--B--\r\n"


FILE = (
    'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav',
    "RIFF\r\n" * 9,
)
MODEL = ('Content-Disposition: form-data; name="model"', "openai/whisper-large-v3")


@pytest.mark.parametrize("parts", [(FILE, MODEL), (MODEL, FILE)])
def test_the_model_of_a_form(parts: tuple[tuple[str, str], ...]) -> None:
    streamed = ('content-disposition: form-data; name="stream"\r\nContent-Type: text/plain', "true")
    found = read("/v1/audio/transcriptions", form(*parts), "multipart/form-data; boundary=B")
    assert found == Question("openai/whisper-large-v3")
    assert read("/v1/audio/transcriptions", form(*parts, streamed), "Multipart/form-data; boundary=B").stream


@pytest.mark.parametrize("data", [b"", form(FILE), form(("Content-Disposition: form-data; name=model", ""))])
def test_a_form_without_a_model(data: bytes) -> None:
    with pytest.raises(BadQuestion, match="no field 'model'"):
        read("/v1/audio/transcriptions", data, "multipart/form-data; boundary=B")
