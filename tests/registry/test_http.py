"""Every route of the registry over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.errors import AegisError
from aegis.registry import api

from .conftest import DEADLINE, Clock, Site, push, report, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

    from aegis.registry.store import Store

TOKEN = "s3cret"
KEYS = {"service_id", "host", "port", "service_type", "status", "last_seen", "metadata"}


def body(node: str, *reports: Any) -> bytes:
    return msgspec.json.encode(push(node, *reports))


@pytest.fixture
def fleet(site: Site) -> Site:
    reports = (
        report("a", model="m"),
        report("b", model="k", status="starting"),
        report("c", service_type="sim"),
    )
    assert site.ask("PUT", "/nodes/n1", body("n1", *reports)).status == 200
    return site


@pytest.fixture
def guarded(store: Store, clock: Clock) -> Iterator[Site]:
    with running(store, clock, token=TOKEN) as site:
        yield site


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/services", ["a", "b", "c"]),
        ("/services?type=vllm", ["a", "b"]),
        ("/services?type=", ["a", "b", "c"]),
        ("/services?status=starting", ["b"]),
        ("/services?type=vllm&status=healthy&model=m", ["a"]),
        ("/services?model=nothing", []),
        ("/services/healthy", ["a", "c"]),
        ("/services/healthy?type=sim", ["c"]),
        ("/services/healthy?model=m&timeout=0.5", ["a"]),
    ],
)
def test_lists(fleet: Site, path: str, found: list[str]) -> None:
    answer = fleet.ask("GET", path)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    services = json.loads(answer.body)
    assert [service["service_id"] for service in services] == found
    assert all(service.keys() == KEYS for service in services)


def test_healthy_needs_a_recent_sign_of_life(fleet: Site) -> None:
    fleet.clock.now += 30
    assert json.loads(fleet.ask("GET", "/services/healthy").body) == []
    assert len(json.loads(fleet.ask("GET", "/services/healthy?timeout=31").body)) == 2


@pytest.mark.parametrize(
    ("query", "number"),
    [("", 3), ("?type=vllm", 2), ("?model=m", 1), ("?status=starting", 1), ("?type=x", 0)],
)
def test_count(fleet: Site, query: str, number: int) -> None:
    assert json.loads(fleet.ask("GET", f"/services/count{query}").body) == {"count": number}


def test_one_service(fleet: Site) -> None:
    service = json.loads(fleet.ask("GET", "/services/a").body)
    assert service == {
        "service_id": "a",
        "host": "h",
        "port": 8000,
        "service_type": "vllm",
        "status": "healthy",
        "last_seen": fleet.clock.wall(),
        "metadata": {"model": "m"},
    }


@pytest.mark.parametrize(
    "path", ["/services/zzz", "/services/", "/", "/x", "/services/a/b", "/nodes/", "/%00"]
)
def test_all_else_is_not_found_in_json(fleet: Site, path: str) -> None:
    answer = fleet.ask("GET", path) if path != "/nodes/" else fleet.ask("PUT", path)
    assert (answer.status, json.loads(answer.body)) == (404, {"error": "not found"})


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/services?status=bogus", "unknown status 'bogus': one of pending, starting, healthy"),
        ("/services/count?status=bogus", "one of pending"),
        ("/services?colour=red", "unknown parameter 'colour': this route takes type, status, model"),
        ("/services/healthy?status=healthy", "this route takes type, timeout, model"),
        ("/services?type=a&type=b", "'type' is given twice"),
        ("/services/a?x=1", "this route takes none"),
        *((f"/services/healthy?timeout={bad}", "above 0") for bad in ("0", "-1", "nan", "inf", "x", "1e999")),
        ("/watch?since=-1", "since is '-1'"),
        ("/watch?since=1.5", "since is '1.5'"),
        ("/watch?since=" + "9" * 30, "since is"),
        ("/watch?timeout=x", "timeout is 'x'"),
    ],
)
def test_a_bad_query_is_refused_with_the_reason(fleet: Site, path: str, reason: str) -> None:
    answer = fleet.ask("GET", path)
    assert answer.status == 400
    assert reason in json.loads(answer.body)["error"]


@pytest.mark.parametrize(
    ("sent", "where"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "Expected `object`"),
        (b'{"node": "n"}', "missing required field `services`"),
        (b'{"node": "other", "services": []}', "the URL says 'n'"),
        (b'{"node": "n", "services": [{"service_id": 3}]}', "$.services[0].service_id"),
        (body("n", report("a"), report("b", port=65536)), "$.services[1].port"),
        (body("n", report("a", age=-1.0)), "$.services[0].age"),
        (body("n", report("a", status="fine")), "$.services[0].status"),
        (body("n", report("healthy")), "$.services[0].service_id"),
        (body("n", report("")), "$.services[0].service_id"),
    ],
)
def test_a_malformed_push_is_refused_with_where(site: Site, sent: bytes, where: str) -> None:
    answer = site.ask("PUT", "/nodes/n", sent)
    assert answer.status == 400
    assert where in json.loads(answer.body)["error"]
    assert site.store.select() == []


def test_a_body_that_is_too_large_or_not_what_it_says(site: Site) -> None:
    assert site.ask("PUT", "/nodes/n", b"x" * (api.BODY_BYTES + 1)).status == 413
    answer = site.ask("PUT", "/nodes/n", b"no gzip", **{"Content-Encoding": "gzip"})
    assert answer.status == 400


def test_a_wrong_verb_is_named(site: Site) -> None:
    answer = site.ask("POST", "/services")
    assert answer.status == 405
    assert "GET" in answer.headers["Allow"]
    assert "POST is not allowed here, only GET" in json.loads(answer.body)["error"]


def test_drain_delete_and_stop_reach_the_agent(fleet: Site) -> None:
    assert fleet.ask("POST", "/services/a/drain").status == 202
    assert fleet.ask("POST", "/services/zzz/drain").status == 404
    assert fleet.ask("DELETE", "/services/c").status == 200
    assert fleet.ask("DELETE", "/services/c").status == 404
    assert fleet.ask("POST", "/stop").status == 202
    answer = json.loads(fleet.ask("PUT", "/nodes/n1", body("n1", report("a"))).body)
    assert answer == {"generations": {}, "drain": ["a"], "stop": True}


@pytest.mark.parametrize(
    "name", ["..", "a/b", "a b", "%2F", "é\n", "{x}", "$(x); '\"", "#?&=+", "\x00", "x/drain"]
)
def test_ids_and_nodes_may_hold_any_character(site: Site, name: str) -> None:
    path = f"/services/{quote(name, safe='')}"
    assert site.ask("PUT", f"/nodes/{quote(name, safe='')}", body(name, report(name))).status == 200
    assert json.loads(site.ask("GET", path).body)["service_id"] == name
    assert site.ask("POST", f"{path}/drain").status == 202
    assert site.ask("DELETE", path).status == 200


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(name=st.text(min_size=1).filter(lambda name: name not in {"count", "healthy"}))
def test_the_client_finds_any_id(site: Site, name: str) -> None:
    client = site.client()
    client.push(push(name, report(name)))
    assert client.get(name).service_id == name
    assert client.delete(name).service_id == name


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/nodes/n"), ("POST", "/services/a/drain"), ("DELETE", "/services/a"), ("POST", "/stop")],
)
@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "Basic s3cret", "s3cret", "Bearer s3cret2", "Bearer \xff"]
)
def test_write_verbs_need_the_token(guarded: Site, method: str, path: str, given: str | None) -> None:
    answer = guarded.ask(method, path, b"{}", **({"Authorization": given} if given else {}))
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "token" in json.loads(answer.body)["error"]
    assert not guarded.store.acknowledge("n").stop


def test_the_token_opens_writes_and_reads_are_open(guarded: Site) -> None:
    answer = guarded.ask("PUT", "/nodes/n", body("n", report("a")), Authorization=f"Bearer {TOKEN}")
    assert answer.status == 200
    assert guarded.ask("GET", "/services").status == 200


def test_protected_reads(store: Store, clock: Clock) -> None:
    with running(store, clock, token=TOKEN, protect_reads=True) as site:
        for path in (
            "/services",
            "/services/healthy",
            "/services/count",
            "/services/a",
            "/watch",
            "/metrics",
        ):
            assert site.ask("GET", path).status == 401
        assert site.ask("GET", "/services", Authorization=f"Bearer {TOKEN}").status == 200
        assert site.ask("GET", "/healthz").status == 200


def test_metrics(fleet: Site) -> None:
    fleet.ask("GET", "/services/a")
    text = fleet.ask("GET", "/metrics").body.decode()
    assert 'aegis_registry_services{status="healthy",type="sim"} 1.0' in text
    assert "aegis_registry_pushes_total 1.0" in text
    assert 'aegis_registry_request_seconds_count{method="GET",route="/services/{id}"} 1.0' in text


def test_watch_wakes_on_a_change(fleet: Site) -> None:
    client = fleet.client()
    known = client.watch()
    assert (known.reset, len(known.services)) == (True, 3)
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(client.watch(known.revision, 60)))
    began = time.monotonic()
    thread.start()
    client.push(push("n2", report("d")))
    thread.join(DEADLINE)
    assert time.monotonic() - began < DEADLINE
    assert [service.service_id for service in seen[0].services] == ["d"]
    assert not seen[0].reset


def test_watch_wakes_on_stop_once(fleet: Site) -> None:
    client = fleet.client()
    revision = client.watch().revision
    client.stop()
    answer = client.watch(revision, 60)
    assert answer.stop
    assert client.watch(answer.revision, 0.05).revision == answer.revision


def test_watch_times_out_with_nothing(fleet: Site) -> None:
    client = fleet.client()
    known = client.watch()
    answer = client.watch(known.revision, 0.05)
    assert (answer.revision, answer.services, answer.removed, answer.reset) == (known.revision, (), (), False)


@pytest.mark.parametrize("since", [0, 99, 10**15])
def test_watch_resets_an_unknown_revision_at_once(fleet: Site, since: int) -> None:
    answer = fleet.client().watch(since, 60)
    assert answer.reset
    assert len(answer.services) == 3


def test_the_sweep_runs_by_itself_and_wakes_watchers(fleet: Site) -> None:
    revision = fleet.client().watch().revision
    fleet.clock.now += 31
    answer = fleet.client().watch(revision, 60)
    assert {service.status for service in answer.services} == {"unhealthy"}


def test_the_end_does_not_wait_for_watchers(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = api.Api.watch
    begun = threading.Event()

    async def noted(self: api.Api, request: web.Request) -> web.Response:
        begun.set()  # it waits from here on, without another turn of the loop
        return await watched(self, request)

    monkeypatch.setattr(api.Api, "watch", noted)
    with running(store, clock) as site:
        client = site.client()
        revision = client.watch().revision
        begun.clear()

        def watch() -> None:
            with contextlib.suppress(AegisError):  # cut off at the end, if it was not answered
                client.watch(revision, 600)

        thread = threading.Thread(target=watch)
        thread.start()
        assert begun.wait(DEADLINE)
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_clients_that_hang_affect_nobody(fleet: Site) -> None:
    unfinished = b"PUT /nodes/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
    hung = [socket.create_connection(("127.0.0.1", fleet.port)) for _ in range(60)]
    try:
        for number, connection in enumerate(hung):
            connection.sendall((b"", b"GET /serv", unfinished)[number % 3])
        began = time.monotonic()
        for _ in range(20):
            assert fleet.ask("GET", "/services/healthy").status == 200
        assert time.monotonic() - began < 5
    finally:
        for connection in hung:
            connection.close()


def test_a_body_that_never_comes_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BODY_SECONDS", 0.05)
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
    connection.putrequest("PUT", "/nodes/x")
    connection.putheader("Content-Length", "99")
    connection.endheaders(b"{")
    with connection.getresponse() as response:
        assert response.status == 408
    connection.close()


def test_statuses_of_the_first_aegis_are_understood(site: Site) -> None:
    for earlier in ("stopping", "unknown"):
        assert site.ask("GET", f"/services?status={earlier}").status == 200
    assert site.ask("GET", "/services?status=bogus").status == 400
