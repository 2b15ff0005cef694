"""Events out of bytes, in whatever pieces they come."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.api.sse import EventReader

RECORDED = Path(__file__).parents[1] / "fixtures" / "vllm" / "chat_stream.txt"


def read(*pieces: bytes) -> list[bytes]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


def test_a_stream_of_the_real_engine() -> None:
    *events, last = read(RECORDED.read_bytes())
    assert last == b"[DONE]"
    assert all(event.startswith(b'{"id"') for event in events)
    assert len(events) == RECORDED.read_bytes().count(b"data: {")


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b": ping\n\ndata: a\n\n", [b"a"]),
        (b"event: error\nid: 7\ndata: a\n\n", [b"a"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: half-sent", []),
        (b"data: half-sent\n", []),
        (b"\n\n\n\ndata: a\n\n", [b"a"]),
        (b"", []),
    ],
)
def test_events_are_lines_of_data_up_to_an_empty_line(stream: bytes, events: list[bytes]) -> None:
    assert read(stream) == events


@given(
    st.text("da: \n\r{}é", max_size=60).map(str.encode),
    st.lists(st.integers(0, 60), max_size=5).map(sorted),
)
def test_pieces_make_no_difference(stream: bytes, cuts: list[int]) -> None:
    ends = [0, *cuts, len(stream)]
    assert read(*(stream[start:end] for start, end in itertools.pairwise(ends))) == read(stream)


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8")), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_written_is_read(texts: list[str], end: str) -> None:
    stream = "".join(f"data: {text}{end}{end}" for text in texts).encode()
    assert read(stream) == [text.encode() for text in texts]
