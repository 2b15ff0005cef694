"""One request and several servers: who is asked, who is asked next, and what the client is told."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from functools import partial
from typing import TYPE_CHECKING

import pytest

from aegis.api.targets import Target
from aegis.gateway.balance import Policy
from tests.gateway.site import CHAT, Served, Server, Site, answer, answering, longer, post, wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FIRST = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"


def asked(*servers: Server) -> int:
    return sum(len(server.requests) for server in servers)


def posts(server: Server) -> list[bytes]:
    """What it was asked, without looks at its metrics."""
    return [request for request in server.requests if request.startswith(b"POST ")]


def nobody() -> Target:
    """A server that does not listen."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return Target("127.0.0.1", gone.getsockname()[1], ("m",), "n", "nobody")


async def resets(served: Served) -> None:
    await served.request()
    served.reset()


async def closes(served: Served) -> None:
    await served.request()


async def half_a_head(served: Served) -> None:
    await served.request()
    await served.send(b"HTTP/1.1 200 OK\r\nContent-")


async def a_head(served: Served) -> None:
    await served.request()
    await served.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")


async def silent(served: Served) -> None:
    await served.request()
    await served.gone()


@pytest.mark.parametrize("bad", [resets, closes, half_a_head, a_head], ids=lambda bad: bad.__name__)
def test_another_server_is_asked_before_the_first_byte(
    place: Site, bad: Callable[[Served], Awaitable[None]]
) -> None:
    servers = [place.server(bad), place.server(answering(answer()))]
    place.serve(*servers)
    for _ in range(4):
        assert place.ask(post())[0] == 200
    assert len(servers[1].requests) == 4
    wait_until(lambda: not any(each.outstanding for each in place.gateway.balance.backends))


def test_a_server_that_does_not_listen_is_passed_by(place: Site) -> None:
    server = place.server(answering(answer()))
    place.serve(server)
    place.sources.change(nobody(), server.target)
    wait_until(lambda: len(place.gateway.balance.backends) == 2)
    assert [place.ask(post())[0] for _ in range(4)] == [200] * 4


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_passed_by(place: Site, status: int) -> None:
    bad = place.server(answering(answer(b"bad", status)))
    good = place.server(answering(answer(b"good")))
    place.serve(bad, good)
    assert [place.ask(post())[2] for _ in range(6)] == [b"good"] * 6
    assert bad.requests


def test_the_last_answer_is_passed_on_when_all_are_in_trouble(place: Site) -> None:
    servers = [place.server(answering(answer(b"full %d" % n, 429, "Retry-After: 7"))) for n in range(3)]
    place.serve(*servers)
    status, head, body = place.ask(post())
    assert (status, body[:4], b"Retry-After: 7\r\n" in head) == (429, b"full", True)
    assert asked(*servers) == 3


def test_what_breaks_every_server_is_tried_twice_only(place: Site) -> None:
    servers = [place.server(answering(answer(b"oh", 500))) for _ in range(4)]
    place.serve(*servers)
    assert place.ask(post())[::2] == (500, b"oh")
    assert asked(*servers) == 2


@pytest.mark.parametrize("status", [200, 400, 401, 404, 422])
def test_other_answers_are_final(place: Site, status: int) -> None:
    servers = [place.server(answering(answer(b"x", status))) for _ in range(2)]
    place.serve(*servers)
    assert place.ask(post())[0] == status
    assert asked(*servers) == 1


def test_nothing_is_tried_again_after_the_first_byte(place: Site) -> None:
    async def breaks(served: Served) -> None:
        await served.request()
        await served.send(FIRST)
        await asyncio.sleep(0.05)
        served.reset()

    servers = [place.server(breaks) for _ in range(2)]
    place.serve(*servers)
    client = place.client().send(post())
    assert client.read(len(FIRST)) == FIRST
    with pytest.raises((ConnectionResetError, AssertionError)):
        client.read(1)
    assert asked(*servers) == 1


def test_a_stream_that_breaks_has_no_clean_end(place: Site) -> None:
    async def breaks(served: Served) -> None:
        await served.request()
        await served.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")

    place.serve(place.server(breaks))
    client = place.client().send(post())
    head = client.head()
    try:
        rest = client.rest()
    except ConnectionResetError:
        rest = b""
    assert b"200" in head
    assert not rest.endswith(b"0\r\n\r\n")


def test_a_long_error_is_passed_on(place: Site) -> None:
    long = b"x" * 200_000
    servers = [place.server(answering(answer(long, 503))) for _ in range(2)]
    place.serve(*servers)
    assert place.ask(post())[2] == long
    assert asked(*servers) == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_takes_its_request_along(place: Site, begun: bool) -> None:
    gone = []

    async def speak(served: Served) -> None:
        await served.request()
        if begun:
            await served.send(FIRST)
        await served.gone()
        gone.append(1)

    server = place.server(speak)
    place.serve(server)
    client = place.client().send(post())
    wait_until(lambda: server.requests)
    if begun:
        client.read(len(FIRST))
    client.close()
    wait_until(lambda: gone)
    wait_until(lambda: place.gateway.balance.backends[0].outstanding == 0)
    assert not place.gateway.exchanges


def test_a_stale_connection_counts_for_nothing(place: Site) -> None:
    """A server may close an idle connection just as a request comes on it."""

    async def once(served: Served) -> None:
        await served.request()
        await served.send(answer())
        await served.reader.read(1)  # the next request: dropped, as if it had not come
        served.reset()

    server = place.server(once)
    place.serve(server, attempts=1)
    client = place.client()
    for _ in range(6):
        assert client.send(post()).answer()[0] == 200
    backend = place.gateway.balance.backends[0]
    wait_until(lambda: backend.outstanding == 0)
    assert (backend.failures, backend.state) == (0, "closed")


def test_connections_to_servers_are_kept(place: Site) -> None:
    server = place.server(answering(answer()))
    place.serve(server)
    for _ in range(5):
        place.ask(post())
    assert server.connections == 1


def test_a_server_that_says_too_much_is_asked_on_a_new_connection(place: Site) -> None:
    go = asyncio.Event()

    async def speak(served: Served) -> None:
        await served.request()
        await served.send(answer())
        if server.connections == 1:
            await go.wait()
            await served.send(b"more")
        await served.gone()

    server = place.server(speak)
    place.serve(server)
    assert place.ask(post())[0] == 200
    place.call(go.set)
    wait_until(lambda: not any(place.gateway.pool._free.values()))
    assert place.ask(post())[0] == 200
    assert server.connections == 2


def test_requests_beyond_the_limit_wait_and_then_go_on_in_order(place: Site) -> None:
    held: list[asyncio.Event] = []

    async def speak(served: Served) -> None:
        while await served.request():
            held.append(event := asyncio.Event())
            await event.wait()
            await served.send(answer())

    server = place.server(speak)
    place.serve(server, policy=Policy(outstanding=2))
    clients = []
    for number in range(5):
        clients.append(place.client().send(post({"model": "m", "n": number})))
        wait_until(partial(place.has_requests, number + 1))
    wait_until(lambda: len(held) == 2)
    assert (place.gateway.line.length, len(server.requests)) == (3, 2)
    for number, client in enumerate(clients):
        wait_until(partial(longer, held, number))
        place.call(held[number].set)
        assert client.answer()[0] == 200
    sent = [json.loads(request.partition(b"\r\n\r\n")[2])["n"] for request in server.requests]
    assert sorted(sent[:2]) + sent[2:] == [0, 1, 2, 3, 4]


def test_a_full_queue_and_a_long_wait_are_told(place: Site) -> None:
    server = place.server(silent)
    place.serve(server, policy=Policy(outstanding=1), queue_length=1, queue_seconds=0.6)
    place.client().send(post())
    wait_until(lambda: server.requests)
    waits = place.client().send(post())
    wait_until(lambda: place.gateway.line.length == 1)
    status, error, head = place.client().send(post()).error()
    assert (status, error["code"], b"Retry-After: 5\r\n" in head) == (429, "overloaded", True)
    status, error, head = waits.error()
    assert (status, error["code"], b"Retry-After: " in head) == (429, "overloaded", True)
    assert place.gateway.line.length == 0


def test_one_that_waits_may_leave(place: Site) -> None:
    place.serve(place.server(silent), policy=Policy(outstanding=1))
    place.client().send(post())
    waits = place.client()
    wait_until(lambda: len(place.gateway.exchanges) == 1)
    waits.send(post())
    wait_until(lambda: place.gateway.line.length == 1)
    waits.close()
    wait_until(lambda: place.gateway.line.length == 0)


def test_a_model_without_an_instance_is_waited_for(place: Site) -> None:
    server = place.server(answering(answer()))
    place.serve(server, absent_seconds=20.0)
    place.sources.change()
    wait_until(lambda: not place.gateway.balance.names)
    client = place.client().send(post())
    wait_until(lambda: place.gateway.line.length)
    place.sources.change(server.target)
    assert client.answer()[0] == 200


def test_a_model_that_stays_away_is_told(place: Site) -> None:
    server = place.server(answering(answer()))
    place.serve(server, absent_seconds=0.2)
    place.sources.change()
    wait_until(lambda: not place.gateway.balance.names)
    status, error, head = place.client().send(post()).error()
    assert (status, error["code"], b"Retry-After: " in head) == (503, "no_instance", True)


def test_a_dead_server_alone_is_told_too(place: Site) -> None:
    place.serve(absent_seconds=0.2)
    place.sources.change(nobody())
    wait_until(lambda: place.gateway.balance.names)
    status, error, _ = place.client().send(post()).error()
    assert (status, error["code"]) == (503, "no_instance")


def test_an_unknown_model_is_told_with_those_there_are(place: Site) -> None:
    place.serve(place.server(answering(answer()), "llama-3-8b"), place.server(answering(answer()), "qwen"))
    status, error, _ = place.client().send(post({"model": "llama-3-8B"})).error()
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "did you mean 'llama-3-8b'" in error["message"]
    assert "llama-3-8b, qwen" in error["message"]


def test_before_anything_is_known_asking_again_may_help(place: Site) -> None:
    place.serve()
    status, error, head = place.client().send(post()).error()
    assert (status, error["code"], b"Retry-After: " in head) == (503, "no_instance", True)


def test_a_draining_server_finishes_what_it_has(place: Site) -> None:
    go = []

    async def speak(served: Served) -> None:
        await served.request()
        await served.send(FIRST)
        go.append(event := asyncio.Event())
        await event.wait()
        await served.send(b"67890")

    old, new = place.server(speak), place.server(answering(answer(b"new")))
    place.serve(old)
    client = place.client().send(post())
    assert client.read(len(FIRST)) == FIRST
    place.sources.change(new.target)
    wait_until(lambda: any(each.gone for each in place.gateway.balance.backends))
    assert place.ask(post())[2] == b"new"
    place.call(go[0].set)
    assert client.read(5) == b"67890"


def test_a_server_that_never_begins_is_given_up(place: Site) -> None:
    place.serve(place.server(silent), attempts=1, first_byte_seconds=0.2)
    status, error, _ = place.client().send(post()).error()
    assert (status, error["code"]) == (504, "no_answer")


def test_a_stream_that_stops_is_cut_where_that_is_asked_for(place: Site) -> None:
    async def speak(served: Served) -> None:
        await served.request()
        await served.send(FIRST)
        await served.gone()

    place.serve(place.server(speak), idle_seconds=0.2)
    client = place.client().send(post())
    assert client.read(len(FIRST)) == FIRST
    with pytest.raises((ConnectionResetError, AssertionError)):
        client.read(1)


def test_a_wedged_server_is_found_and_its_requests_go_elsewhere(place: Site) -> None:
    wedged, good = place.server(silent), place.server(answering(answer(b"good")))
    place.serve(wedged, policy=Policy(stall_seconds=0.3, probe_seconds=0.3, pause_seconds=30.0))
    client = place.client().send(post())
    wait_until(lambda: wedged.requests)
    place.sources.change(wedged.target, good.target)
    assert client.answer()[2] == b"good"
    assert json.loads(posts(wedged)[1].partition(b"\r\n\r\n")[2])["max_tokens"] == 1
    assert place.gateway.balance.backends[0].state == "open"
    assert [place.ask(post())[2] for _ in range(3)] == [b"good"] * 3


def test_a_slow_server_that_answers_the_probe_stays(place: Site) -> None:
    go = asyncio.Event()

    async def slow(served: Served) -> None:
        while request := await served.request():
            if b'"max_tokens":1' not in request:
                await go.wait()
            await served.send(answer())

    server = place.server(slow)
    place.serve(server, policy=Policy(stall_seconds=0.2, probe_seconds=20.0))
    client = place.client().send(post())
    wait_until(lambda: len(posts(server)) >= 2)
    place.call(go.set)
    assert client.answer()[0] == 200
    assert place.gateway.balance.backends[0].state == "closed"


def test_a_busy_server_whose_tokens_move_stays(place: Site) -> None:
    go = asyncio.Event()
    pages = itertools.count()

    async def busy(served: Served) -> None:
        while request := await served.request():
            if request.startswith(b"GET /metrics "):
                page = b'vllm:generation_tokens_total{engine="0"} %d.0\n' % next(pages)
                await served.send(answer(page))
            else:  # a probe waits its turn behind long answers, as they do
                await go.wait()
                await served.send(answer())

    server = place.server(busy)
    place.serve(server, policy=Policy(stall_seconds=0.2, probe_seconds=0.3))
    client = place.client().send(post())
    wait_until(lambda: len(posts(server)) >= 3)  # it was probed twice
    assert place.gateway.balance.backends[0].state == "closed"
    place.call(go.set)
    assert client.answer()[0] == 200


def test_a_model_of_embeddings_is_probed_with_one(place: Site) -> None:
    server = place.server(answering(answer(), answer(), b""))
    place.serve(server, policy=Policy(stall_seconds=0.2, probe_seconds=0.5))
    request = post({"model": "m", "input": "x"}, "/v1/embeddings")
    assert place.ask(request)[0] == 200
    assert place.ask(request)[0] == 200
    place.client().send(request)
    wait_until(lambda: len(posts(server)) >= 4)
    assert posts(server)[3].startswith(b"POST /v1/embeddings ")


def test_a_breaker_that_is_open_closes_after_a_probe(place: Site) -> None:
    server = place.server(answering(answer()))
    place.serve(server, policy=Policy(pause_seconds=0.1), absent_seconds=20.0)
    backend = place.gateway.balance.backends[0]
    place.call(lambda: place.gateway.balance.probed(backend, answered=False))
    wait_until(lambda: backend.state == "open")
    assert place.ask(post())[0] == 200  # it waited for the probe
    assert backend.state == "closed"


def test_servers_are_asked_with_their_own_key(place: Site) -> None:
    server = place.server(answering(answer()))
    place.serve(server, upstream_key="servers")
    place.ask(post(None, CHAT, "Authorization: Bearer client"))
    assert b"Authorization: Bearer servers\r\n" in server.requests[0]
    assert b"client" not in server.requests[0]


def test_one_server_that_fails_once_is_asked_again(place: Site) -> None:
    first = [True]

    async def speak(served: Served) -> None:
        while await served.request():
            if first.pop() if first else False:
                served.reset()
                return
            await served.send(answer())

    place.serve(place.server(speak))
    assert place.ask(post())[0] == 200
