"""Bytes: what goes through comes out as it went in, in whatever pieces."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.gateway.answer import AnswerReader, BadAnswer
from aegis.gateway.request import Refused, RequestReader
from tests.gateway.site import Served, Site, answer, answering, longer, post, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = st.from_regex(rb"[a-z][a-z0-9-]{0,8}", fullmatch=True).map(lambda name: b"x-" + name)
VALUE = st.from_regex(rb"[!-~](?:[ -~]{0,20}[!-~])?", fullmatch=True)
FIELDS = st.lists(st.tuples(TOKEN, VALUE), max_size=4)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces."""
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(at)]


def lines(fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields)


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    extension = draw(st.sampled_from([b"", b";a=b", b';q="x"']))
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    return framed + b"0\r\n" + lines(draw(FIELDS)) + b"\r\n"


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes, bool]:
    """An answer, what a client must get of it, and whether it ends with its connection."""
    status = draw(st.sampled_from([200, 201, 400, 404, 422, 418, 204, 304]))
    fields, own = lines(draw(FIELDS)), draw(st.sampled_from([b"", b"Connection: keep-alive\r\n"]))
    first = b"HTTP/1.1 %d %b\r\n" % (status, draw(st.sampled_from([b"", b"OK", b"Some words"])))
    kind = "none" if status in {204, 304} else draw(st.sampled_from(["length", "chunked", "close"]))
    framing, body = {
        "none": (b"", st.just(b"")),
        "length": (b"Content-Length: %d\r\n", st.binary(max_size=200)),
        "chunked": (b"Transfer-Encoding: chunked\r\n", chunks()),
        "close": (b"", st.binary(max_size=200)),
    }[kind]
    content = draw(body)
    if kind == "length":
        framing = framing % len(content)
    interim = draw(
        st.sampled_from([b"", b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n"])
    )
    unasked = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    closing = b"Connection: close\r\n" if kind == "close" else b""
    sent = unasked + interim + first + fields + own + framing + b"\r\n" + content
    return sent, interim + first + fields + framing + closing + b"\r\n" + content, kind == "close"


@pytest.fixture(scope="module")
def mirror() -> Iterator[tuple[Site, list[list[bytes]], list[bool]]]:
    """A gateway before a server that says what it is told to, and then closes where it is told to."""
    place, said, closes = Site(), [[b""]], [False]

    async def speak(served: Served) -> None:
        while await served.request():
            await served.send(*said[0])
            if closes[0]:
                return

    place.serve(place.server(speak))
    yield place, said, closes
    place.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=answers(), places=st.lists(st.integers(0, 500), max_size=6))
def test_an_answer_passes_byte_for_byte(
    mirror: tuple[Site, list[list[bytes]], list[bool]],
    one: tuple[bytes, bytes, bool],
    places: list[int],
) -> None:
    place, said, closes = mirror
    sent, wanted, ends = one
    said[0], closes[0] = cut(sent, places), ends
    client = place.client().send(post())
    assert client.read(len(wanted)) == wanted
    if ends:
        assert client.rest() == b""
    else:  # the connection goes on
        said[0] = [answer(b"next")]
        assert client.send(post()).answer()[2] == b"next"
    client.close()


@given(
    bodies=st.lists(st.tuples(st.binary(max_size=50), st.booleans()), min_size=1, max_size=4),
    fields=FIELDS,
    places=st.lists(st.integers(0, 500), max_size=8),
)
def test_requests_are_read_the_same_in_any_pieces(
    bodies: list[tuple[bytes, bool]], fields: list[tuple[bytes, bytes]], places: list[int]
) -> None:
    data = b""
    for body, chunked in bodies:
        data += b"POST /v1/x?a=b HTTP/1.1\r\nHost: h\r\n" + lines(fields)
        if chunked:
            framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            data += b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\nx-trailer: t\r\n\r\n"
        else:
            data += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    reader = RequestReader(10_000, 10_000)
    for piece in cut(data, places):
        reader.feed(piece)
    assert [(each.path, each.headers, each.body) for each in reader.ready] == [
        (b"/v1/x", fields, body) for body, _ in bodies
    ]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_noise_is_refused_or_waited_for(noise: bytes, places: list[int]) -> None:
    for start in (
        b"",
        b"POST / HTTP/1.1\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):
        reader = RequestReader(10_000, 10_000)
        with contextlib.suppress(Refused):
            for piece in cut(start + noise, places):
                reader.feed(piece)
        answers = AnswerReader()
        with contextlib.suppress(BadAnswer):
            for piece in cut(b"HTTP/1.1 200 OK\r\n" + noise, places):
                answers.feed(piece)


@pytest.mark.parametrize(
    "sent",
    [
        answer() + b"x",
        answer() + answer(),
        CHUNKED + b"0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx" + b"\r\n\r\n",
    ],
    ids=["a byte more", "two answers", "two, chunked", "upgrade", "two lengths", "ssh", "bare line feeds"],
)
def test_what_is_no_answer_never_reaches_a_client(place: Site, sent: bytes) -> None:
    place.serve(place.server(answering(sent)), attempts=1)
    status, error, _ = place.client().send(post()).error()
    assert (status, error["code"]) == (502, "no_answer")


def test_a_body_reaches_the_server_as_it_is(place: Site) -> None:
    server = place.server(answering(answer()))
    place.serve(server)
    body = b'{ "model" : "m",\n\t"x":[1e5,  1.50],"t":"\\u00e9\xc3\xa9", "model":"m"}'
    chunked = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = b"POST /v1/chat/completions?x=%20 HTTP/1.1\r\nHost: g\r\n"
    client = place.client()
    client.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body).answer()
    client.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked).answer()
    assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == [body, body]
    assert all(b" /v1/chat/completions?x=%20 HTTP/1.1\r\n" in request for request in server.requests)


def test_only_headers_of_the_connection_stay_behind(place: Site) -> None:
    server = place.server(
        answering(answer(b"{}", 200, "Keep-Alive: timeout=5", "Connection: x-gone", "X-Gone: 1", "X-Here: 1"))
    )
    place.serve(server)
    _, head, _ = place.ask(
        post(
            None,
            "/v1/completions",
            *("X-Kept:  two words", "Connection: X-Named , keep-alive", "X-Named: 1", "TE: trailers"),
            *("Keep-Alive: 1", "Upgrade: h3", "Proxy-Authorization: b", "Authorization: Bearer theirs"),
            *("Content-Type: application/json", "x-kept: again"),
        )
    )
    sent = server.requests[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert sorted(sent[1:]) == sorted(
        [
            *(b"Host: gateway", b"X-Kept: two words", b"x-kept: again", b"Content-Length: 30"),
            *(b"Authorization: Bearer theirs", b"Content-Type: application/json"),
        ]
    )
    assert head == b"HTTP/1.1 200 Some\r\nX-Here: 1\r\nContent-Length: 2\r\n\r\n"


def test_a_slow_client_does_not_fill_the_memory(place: Site) -> None:
    size, written = 48 * 2**20, [0]

    async def speak(served: Served) -> None:
        await served.request()
        await served.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while written[0] < size:
            await served.send(bytes(2**16))
            written[0] += 2**16

    place.serve(place.server(speak))
    client = place.client().send(post())
    head = client.head()
    wait_until(lambda: stands_still(written))
    assert written[0] < size / 2  # sockets hold some MiB
    assert max(each.transport.get_write_buffer_size() for each in place.gateway.clients) < 2**20
    assert (b"200" in head, client.skip(size)) == (True, size)


def stands_still(counter: list[int]) -> bool:
    before = counter[0]
    time.sleep(0.3)
    return bool(before) and counter[0] == before


def test_a_slow_server_does_not_fill_the_memory_either(place: Site) -> None:
    """A body is held once, whole, and sent as the server takes it."""

    async def speak(served: Served) -> None:
        await asyncio.sleep(0.2)
        await served.request()
        await served.send(answer())

    place.serve(place.server(speak))
    body = b'{"model":"m","x":"' + b"a" * 20_000_000 + b'"}'
    assert place.ask(post(body))[0] == 200


def test_events_arrive_one_by_one(place: Site) -> None:
    go: list[asyncio.Event] = []

    async def speak(served: Served) -> None:
        while await served.request():
            await served.send(CHUNKED)
            for number in range(3):
                go.append(event := asyncio.Event())
                await event.wait()
                await served.send(b"9\r\ndata: %d\n\n\r\n" % number)
            await served.send(b"0\r\n\r\n")

    place.serve(place.server(speak))
    client = place.client().send(post())
    for number in range(3):
        wait_until(partial(longer, go, number))
        place.call(go[number].set)
        if number == 0:
            assert client.head() == CHUNKED
        assert client.read(14) == b"9\r\ndata: %d\n\n\r\n" % number
    assert client.read(5) == b"0\r\n\r\n"


def test_http_1_0_gets_no_chunks_and_no_interim_answers(place: Site) -> None:
    async def speak(served: Served) -> None:
        request = await served.request()
        assert re.match(rb"POST \S+ HTTP/1\.0\r\n", request)
        await served.send(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n\r\ndata: 1\n\n")

    place.serve(place.server(speak))
    client = place.client().send(post(None, version="1.0"))
    assert client.rest() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: 1\n\n"
