"""Answers out of bytes, in whatever pieces they come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.api.sse import EventReader
from aegis.bench.response import BadResponse, ResponseReader
from aegis.bench.wire import Answer, Failed, event_of, is_event

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = b'data: {"id":"cmpl-1","choices":[{"index":0,"text":" x"}]}\n\n'
USAGE = b'data: {"id":"cmpl-1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM = HEAD + b"".join(map(chunk, (TOKEN, TOKEN, b": ping\n\n", TOKEN, USAGE, DONE, b"")))


def fed(*pieces: bytes) -> Answer:
    """An answer whose pieces come a second apart."""
    answer = Answer()
    for now, piece in enumerate(pieces):
        assert answer.feed(now, piece) == (now == len(pieces) - 1)
    return answer


@given(st.lists(st.integers(1, len(STREAM) - 1), unique=True, max_size=9).map(sorted))
def test_pieces_make_no_difference_to_counts(cuts: list[int]) -> None:
    answer = fed(*(STREAM[start:end] for start, end in itertools.pairwise([0, *cuts, len(STREAM)])))
    assert len(answer.times) == 3
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    assert list(answer.times) == sorted(answer.times)


def test_an_event_has_the_time_of_the_read_that_completes_it() -> None:
    first, second = chunk(TOKEN), chunk(TOKEN)
    end = chunk(USAGE) + chunk(DONE) + chunk(b"")
    assert list(fed(HEAD, first, second[:9], second[9:], first + second, end).times) == [1, 3, 4, 4]


def test_the_last_event_may_be_a_token() -> None:
    answer = fed(HEAD + chunk(TOKEN), chunk(TOKEN), chunk(DONE) + chunk(b""))
    assert (list(answer.times), answer.usage) == ([0, 1], None)


@pytest.mark.parametrize("cut", [0, 5])
def test_an_error_in_the_stream_is_one(cut: int) -> None:
    error = chunk(b'data: {"error":{"message":"the engine died"}}\n\n')
    with pytest.raises(Failed, match="the engine died"):
        fed(HEAD, chunk(TOKEN), error[:cut] or error, error[cut:])


@given(
    st.text('abc{}"\n\r:, ', max_size=30), st.integers(-2, 2), st.sampled_from([b"\n\n", b"\r\n\r\n", b"\n"])
)
def test_what_passes_for_an_event_is_one(text: str, wrong: int, end: bytes) -> None:
    data = b'data: {"id"%b}%b' % (text.encode(), end)
    bytes_ = b"%x\r\n%b\r\n" % (len(data) + wrong, data)
    if is_event(bytes_):
        response, events = ResponseReader(), EventReader()
        assert events.feed(response.feed(HEAD + bytes_)) == [event_of(bytes_)]
        assert response.between_chunks
        assert events.between_events


@pytest.mark.parametrize("size", [30, 0xFF, 0x100, 0x101, 0x400])
def test_events_of_any_usual_length_pass(size: int) -> None:
    data = b'data: {"id":"%b"}\n\n' % (b"x" * (size - 17))
    assert is_event(chunk(data))
    assert not is_event(chunk(data + data))
    assert not is_event(chunk(data)[:-1])
    with pytest.raises(BadResponse):
        ResponseReader().feed(HEAD + b"%x\r\n%b\r\n" % (size - 1, data))
