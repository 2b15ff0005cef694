"""HTTP responses out of bytes, in whatever pieces they come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.bench.response import BadResponse, ResponseReader

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"


def read(*pieces: bytes) -> tuple[ResponseReader, bytes]:
    reader = ResponseReader()
    return reader, b"".join(reader.feed(piece) for piece in pieces)


@pytest.mark.parametrize(
    "response",
    [
        LENGTH,
        CHUNKED,
        CHUNKED[:-2] + b"Trailer: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH,
    ],
)
@given(cuts=st.lists(st.integers(0, 120), max_size=6).map(sorted))
def test_pieces_make_no_difference(response: bytes, cuts: list[int]) -> None:
    ends = [0, *cuts, len(response)]
    reader, body = read(*(response[start:end] for start, end in itertools.pairwise(ends)))
    assert (reader.status, body, reader.done, reader.keep_alive) == (200, b"hello", True, True)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6))
def test_chunks_are_joined(chunks: list[bytes]) -> None:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    reader, body = read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + coded)
    assert (body, reader.done) == (b"".join(chunks), False)
    assert reader.feed(b"0\r\n\r\n") == b""
    assert reader.done


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0", False),
        (b"HTTP/1.1 204 No Content", True),
    ],
)
def test_who_keeps_the_connection(head: bytes, kept: bool) -> None:
    reader, _ = read(head + b"\r\n\r\n")
    assert (reader.done, reader.keep_alive) == (True, kept)


def test_without_a_length_the_end_of_the_connection_is_the_end() -> None:
    reader, body = read(b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert (body, reader.done) == (b"hello", False)
    assert reader.end()
    assert not reader.keep_alive


@pytest.mark.parametrize("cut", [10, len(CHUNKED) - 3])
def test_a_cut_response_is_not_whole(cut: int) -> None:
    assert not read(CHUNKED[:cut])[0].end()


@pytest.mark.parametrize(
    "bad",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        LENGTH + b"more",
        CHUNKED + b"more",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nhe\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nhello\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_response_is_refused(bad: bytes) -> None:
    with pytest.raises(BadResponse):
        read(bad)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        try:
            read(start + data)
        except BadResponse:
            continue
