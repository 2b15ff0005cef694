"""Tokens of answers that engines gave, whatever pieces they come in."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.gateway.usage import KEPT, Tail, Usage

VLLM = Path(__file__).parents[1] / "fixtures" / "vllm"
ANSWER, STREAM = (VLLM / "chat.json").read_bytes(), (VLLM / "chat_stream.txt").read_bytes()
EXPECTED = {ANSWER: Usage(20, 32), STREAM: Usage(20, 8)}
RESPONSE = json.dumps(
    {
        "output": [{"content": [{"text": 'say "usage": {"input_tokens": 1}'}]}],
        "tools": [{"properties": {"usage": {"type": "string"}}}],
        "usage": {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": 9,
            "total_tokens": 16,
        },
        "user": None,
    }
).encode()
COMPLETED = b"event: response.completed\ndata: " + b'{"response": ' + RESPONSE + b"}\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
CUTS = st.lists(st.integers(0, 4000), max_size=12)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]


def told(parts: list[bytes]) -> Usage | None:
    tail = Tail()
    for part in parts:
        tail.feed(part)
    return tail.usage()


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"


@pytest.mark.parametrize("data", [ANSWER, STREAM])
@given(cuts=CUTS)
def test_any_pieces_of_a_body(data: bytes, cuts: list[int]) -> None:
    assert told(pieces(data, cuts)) == EXPECTED[data]


@pytest.mark.parametrize("data", [ANSWER, STREAM])
@given(framed=CUTS, cuts=CUTS)
def test_any_pieces_of_the_wire(data: bytes, framed: list[int], cuts: list[int]) -> None:
    assert told(pieces(HEAD + chunked(pieces(data, framed)), cuts)) == EXPECTED[data]


@given(framed=st.just(list(range(4000))) | st.lists(st.integers(0, 4000), max_size=60), cuts=CUTS)
def test_a_usage_cut_into_small_chunks(framed: list[int], cuts: list[int]) -> None:
    data = b'{"usage": {"prompt_tokens": 1234567, "total_tokens": 1234577, "completion_tokens": 10}}'
    assert told(pieces(chunked(pieces(data, framed)), cuts)) == Usage(1234567, 10)


@pytest.mark.parametrize("data", [RESPONSE, COMPLETED])
def test_the_names_of_responses(data: bytes) -> None:
    assert told([data]) == Usage(7, 9)


def test_a_stream_with_crlf() -> None:
    assert told([chunked([STREAM.replace(b"\n", b"\r\n")])]) == Usage(20, 8)


def test_the_last_of_many_counts() -> None:
    event = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": %d}}\n\n'
    assert told([event % number for number in range(1, 900)] + [b"data: [DONE]\n\n"]) == Usage(5, 899)


def test_embeddings_have_no_completion() -> None:
    data = b'{"data": [' + b"0.1, " * 100_000 + b'0], "usage": {"prompt_tokens": 3, "total_tokens": 3}}'
    assert told([data]) == told(pieces(data, list(range(0, 4000, 7)))) == Usage(3, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"usage": null}',
        b'{"usage": {}}',
        b'{"usage": {"prompt_tokens": null}}',
        b'{"usage": {"prompt_tokens": "5"}}',
        b'{"usage": {"prompt_tokens": -5, "completion_tokens": true}}',
        b'{"usage": {"prompt_tokens": 5',
        b'{"content": "\\"usage\\": {\\"prompt_tokens\\": 5}"}',
        b'{"usage": ' + b'{"a":' * 3000 + b'"_tokens"',
        b"\xff\x00_tokens",
    ],
)
def test_where_there_is_none(data: bytes) -> None:
    assert told([data]) is None


@given(st.lists(st.binary(max_size=3 * KEPT)))
def test_memory_is_bounded(parts: list[bytes]) -> None:
    tail, seen = Tail(), b""
    for part in parts:
        tail.feed(part)
        seen += part
        kept = b"".join(tail._pieces)
        assert len(kept) < 2 * KEPT
        assert seen.endswith(kept)
        assert len(kept) >= min(len(seen), KEPT)
    tail.usage()


def test_events_estimate_the_tokens_of_a_stream() -> None:
    tail = Tail()
    tail.feed(STREAM)
    assert 8 <= tail.events <= 12
