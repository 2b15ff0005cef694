"""What clients do to a gateway, and what it tells them: requests, limits, pages, TLS, keys, and the end."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from aegis.errors import ConfigError, SiteError
from aegis.gateway.keyfile import Key, digest
from aegis.gateway.server import serve, tls_of
from aegis.gateway.settings import Settings
from tests.gateway.site import CHAT, Fixed, Served, Site, answer, answering, post, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\n"
BODY = b'{"model":"m"}'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(
            (f"/v1/{name}", {"model": "m"})
            for name in ("completions", "embeddings", "responses", "audio/speech")
        ),
        *((f"/{name}", {"model": "m"}) for name in ("tokenize", "pooling", "rerank", "score", "v2/rerank")),
    ],
)
def test_every_request_that_names_a_model_goes_to_one(place: Site, path: str, body: dict[str, str]) -> None:
    server = place.server(answering(answer()))
    place.serve(server)
    assert place.ask(post(body, path))[0] == 200
    assert server.requests[0].startswith(f"POST {path} HTTP/1.1\r\n".encode())


def test_requests_go_to_the_model_that_they_name(place: Site) -> None:
    place.serve(*(place.server(answering(answer(name.encode())), name) for name in ("a", "b")))
    client = place.client()
    for name in "abba":
        assert client.send(post({"model": name})).answer()[2] == name.encode()


def test_pipelined_requests_are_answered_in_order(place: Site) -> None:
    async def speak(served: Served) -> None:
        while request := await served.request():
            number = json.loads(request.partition(b"\r\n\r\n")[2])["n"]
            await asyncio.sleep(0.02 * (3 - number % 3))  # later ones would be ready sooner
            await served.send(answer(b"%d" % number))

    place.serve(place.server(speak))
    client = place.client().send(b"".join(post({"model": "m", "n": number}) for number in range(20)))
    assert [int(client.answer()[2]) for _ in range(20)] == list(range(20))


def test_errors_keep_their_place_among_pipelined_requests(place: Site) -> None:
    place.serve(place.server(answering(answer(b"1"))))
    client = place.client().send(post() + post(b"no json") + post({"model": "x"}) + post() + b"NOISE\r\n\r\n")
    assert [client.answer()[0] for _ in range(5)] == [200, 400, 404, 200, 400]
    assert client.rest() == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD + b"Content-Length: 13\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 13\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Content-Length: 13\r\nContent-Length: 14\r\n\r\n" + BODY, 400),
        (HEAD + b"Content-Length: 13, 13\r\n\r\n" + BODY, 400),
        (HEAD + b"Content-Length: +13\r\n\r\n" + BODY, 400),
        (HEAD + b"Content-Length : 13\r\n\r\n" + BODY, 400),
        (HEAD + b"X: a\n b\r\nContent-Length: 13\r\n\r\n" + BODY, 400),
        (HEAD + b"X: a\r\n b\r\nContent-Length: 13\r\n\r\n" + BODY, 400),
        (HEAD + b"X: a\0\r\nContent-Length: 13\r\n\r\n" + BODY, 400),
        (HEAD + b"Host: other\r\nContent-Length: 13\r\n\r\n" + BODY, 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0xd\r\n" + BODY + b"\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD.replace(b"Host: g\r\n", b"") + b"Content-Length: 13\r\n\r\n" + BODY, 400),
        (HEAD.replace(b"1.1", b"2.0") + b"\r\n", 505),
        (HEAD + b"Expect: miracles\r\nContent-Length: 13\r\n\r\n" + BODY, 417),
        (b"CONNECT other:443 HTTP/1.1\r\nHost: other\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (HEAD + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (HEAD + b"X: a\r\n" * 20_000 + b"\r\n", 431),
        (HEAD + b"X: " + b"a" * 500_000, 431),
        (HEAD + b"Content-Length: 2000000\r\n\r\n", 413),
        (HEAD + b"Expect: 100-continue\r\nContent-Length: 2000000\r\n\r\n", 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1e8480\r\n" + b"a" * 2_000_000, 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: " + b"a" * 500_000, 400),
    ],
)
def test_what_is_ambiguous_too_long_or_strange_is_refused(place: Site, request_: bytes, status: int) -> None:
    server = place.server(answering(answer()))
    place.serve(server, max_body=1_000_000)
    client = place.client()
    client.send(request_)
    got, error, head = client.error()
    assert (got, bool(error["message"])) == (status, True)
    assert b"Connection: close\r\n" in head
    assert client.rest() == b""
    assert not server.requests


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "JSON"),
        (b"[]", "object"),
        (b"{}", "model"),
        (b'{"model":1}', "model"),
        (b'{"model":"m"', "JSON"),
    ],
)
def test_bodies_without_a_model_are_refused(place: Site, body: bytes, said: str) -> None:
    place.serve(place.server(answering(answer())))
    client = place.client()
    for _ in range(2):  # the connection goes on
        status, error, _ = client.send(post(body)).error()
        assert (status, said in error["message"]) == (400, True)


def test_a_client_that_waits_for_a_word_gets_it(place: Site) -> None:
    place.serve(place.server(answering(answer())))
    client = place.client()
    for _ in range(2):
        client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 13\r\n\r\n")
        assert client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert client.send(BODY).answer()[0] == 200


def test_an_offer_of_another_protocol_is_ignored(place: Site) -> None:
    server = place.server(answering(answer()))
    place.serve(server)
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
    client = place.client().send((HEAD + offer + b"Content-Length: 13\r\n\r\n" + BODY) * 3)
    assert [client.answer()[0] for _ in range(3)] == [200] * 3
    assert all(request.endswith(b"\r\n\r\n" + BODY) for request in server.requests)
    assert not any(b"pgrade" in request for request in server.requests)


@pytest.mark.parametrize(("version", "more"), [("1.1", "Connection: close"), ("1.0", "X: y")])
def test_connections_end_where_the_client_wants_it(place: Site, version: str, more: str) -> None:
    place.serve(place.server(answering(answer())))
    client = place.client().send(post(None, CHAT, more, version=version))
    assert b"\r\nConnection: close\r\n" in client.answer()[1]
    assert client.rest() == b""


def test_slow_requests_and_idle_connections_end(place: Site) -> None:
    place.serve(place.server(answering(answer())), head_seconds=0.1, body_seconds=0.1, keep_alive_seconds=0.1)
    idle, head, body = place.client(), place.client(), place.client()
    head.send(b"POST /v1/chat/completions HT")
    body.send(HEAD + b"Content-Length: 13\r\n\r\n{")
    assert idle.rest() == b""
    assert [client.error()[0] for client in (head, body)] == [408, 408]


def test_a_client_that_reads_nothing_is_left(place: Site) -> None:
    async def speak(served: Served) -> None:
        await served.request()
        await served.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while not served.writer.transport.is_closing():
            await served.send(bytes(2**16))

    place.serve(place.server(speak), send_seconds=0.2)
    place.client().send(post())
    wait_until(lambda: place.gateway.clients)
    wait_until(lambda: not place.gateway.clients)
    assert not place.gateway.exchanges


def test_pages(place: Site) -> None:
    place.serve(*(place.server(answering(answer()), name) for name in ("b", "org/a", "b")))
    client = http.client.HTTPConnection("127.0.0.1", place.port)

    def get(path: str) -> tuple[int, bytes]:
        client.request("GET", path)
        response = client.getresponse()
        assert response.getheader("Connection") == "close"
        return response.status, response.read()

    status, body = get("/v1/models")
    models = json.loads(body)
    assert (status, models["object"], [card["id"] for card in models["data"]]) == (
        200,
        "list",
        ["b", "org/a"],
    )
    assert {card["object"] for card in models["data"]} == {"model"}
    assert json.loads(get("/v1/models/org/a")[1])["id"] == "org/a"
    assert get("/v1/models/c")[0] == 404
    health = json.loads(get("/healthz")[1])
    assert (health["status"], health["instances"], health["working"]) == ("ok", 3, 3)
    assert b"aegis_gateway_queue_length 0" in get("/metrics")[1]
    status, body = get("/nothing")
    assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")
    client.request("DELETE", "/v1/models")
    assert client.getresponse().status == 405


def test_a_page_may_follow_on_a_connection_that_asked_a_model(place: Site) -> None:
    place.serve(place.server(answering(answer())))
    client = place.client().send(post() + b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n" + post())
    assert client.answer()[0] == 200
    assert client.answer()[0] == 200
    assert client.rest() == b""  # what came after it is not answered: the client asks again


def test_requests_are_counted_and_written_down(place: Site, tmp_path: Path) -> None:
    body = b'{"usage":{"prompt_tokens":3,"completion_tokens":2}}'
    server = place.server(answering(answer(body)))
    place.serve(server, access_log=tmp_path / "log")
    place.ask(post({"model": "m", "prompt": "a secret"}, "/v1/completions?k=v"))
    place.ask(post({"model": "x"}))
    gone = place.client().send(b"GET /metrics HTTP/1.1\r\nHost: g\r\n\r\n").rest().decode()
    assert f'requests_total{{model="m",key="",instance="{server.target.instance}",code="200"}} 1' in gone
    assert 'kind="completion"} 2' in gone
    assert 'refused_total{reason="model_not_found"} 1' in gone
    text = (tmp_path / "log").read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    assert [(each["path"], each["model"], each["status"]) for each in entries] == [
        ("/v1/completions", "m", 200),
        (CHAT, "x", 404),
    ]
    assert (entries[0]["prompt_tokens"], entries[0]["client"]) == (3, "127.0.0.1")
    assert "secret" not in text


def test_with_keys_nobody_asks_without(place: Site, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = Key(name="ann", sha256=digest("k1"), models=("a*",), requests_per_minute=2)
    file.write_bytes(msgspec.json.encode(key) + b"\n")
    file.chmod(0o600)
    servers = [place.server(answering(answer()), name) for name in ("a1", "b")]
    place.serve(*servers, keys_file=file)
    mine = "Authorization: Bearer k1"
    client = place.client()
    status, error, head = client.send(post({"model": "a1"})).error()
    assert (status, error["code"], b"WWW-Authenticate: Bearer" in head) == (401, "missing_api_key", True)
    assert client.send(post({"model": "a1"}, CHAT, "Authorization: Bearer k2")).error()[0] == 401
    assert client.send(post({"model": "b"}, CHAT, mine)).error()[0] == 403
    assert "'b'" not in client.send(post({"model": "c"}, CHAT, mine)).error()[1]["message"]
    assert client.send(post({"model": "a1"}, CHAT, mine)).answer()[0] == 200
    assert client.send(post({"model": "a1"}, CHAT, mine)).answer()[0] == 200
    status, _, head = client.send(post({"model": "a1"}, CHAT, mine)).error()
    assert (status, b"Retry-After: " in head) == (429, True)
    assert not any(b"k1" in request for server in servers for request in server.requests)
    listed = place.client().send(f"GET /v1/models HTTP/1.1\r\nHost: g\r\n{mine}\r\n\r\n".encode()).answer()[2]
    assert [card["id"] for card in json.loads(listed)["data"]] == ["a1"]
    assert place.client().send(b"GET /v1/models HTTP/1.1\r\nHost: g\r\n\r\n").answer()[0] == 401
    assert place.client().send(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n").answer()[0] == 200


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of localhost, and its key."""
    place = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    argv = ["openssl", *words.split(), "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*argv, "-keyout", place / "key", "-out", place / "cert"], check=True, capture_output=True)
    return place / "cert", place / "key"


def test_tls(place: Site, certificate: tuple[Path, Path]) -> None:
    file, key = certificate
    place.serve(place.server(answering(answer(b"x" * 300_000))), tls_certificate=file, tls_key=key)
    context = ssl.create_default_context(cafile=str(file))
    client = place.client(context)
    assert [len(client.send(post()).answer()[2]) for _ in range(2)] == [300_000] * 2
    assert client.send(b"GET /v1/models HTTP/1.1\r\nHost: g\r\n\r\n").answer()[0] == 200
    assert place.client(context).send(b"NOISE\r\n\r\n").error()[0] == 400


def test_files_of_tls_that_do_not_fit_are_told(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    file, key = certificate
    other, text = tmp_path / "other", tmp_path / "text"
    words = ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out")
    subprocess.run(["openssl", *words, other], check=True, capture_output=True)
    locked = tmp_path / "locked"
    lock = ("ec", "-aes128", "-passout", "pass:word")
    subprocess.run(["openssl", *lock, "-in", key, "-out", locked], check=True, capture_output=True)
    text.write_text("hello")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"tls_certificate": file, "tls_key": other}, "does not belong"),
        ({"tls_certificate": file, "tls_key": text}, "no PEM"),
        ({"tls_certificate": file, "tls_key": locked}, "encrypted"),
        ({"tls_certificate": file, "tls_key": tmp_path / "none"}, "--tls-key"),
        ({"tls_certificate": key}, "no certificate"),
        ({"tls_certificate": file}, "no certificate"),
        ({"tls_key": key}, "without its certificate"),
    )
    for chosen, said in cases:
        with pytest.raises(ConfigError, match=said):
            tls_of(Settings(**chosen))


def test_an_address_that_cannot_be_had_is_told(place: Site) -> None:
    place.serve()
    with pytest.raises(SiteError, match="taken"):
        serve(Settings(host="127.0.0.1", port=place.port), Fixed(()), print)
    with pytest.raises(SiteError, match="cannot listen"):
        serve(Settings(host="192.0.2.1"), Fixed(()), print)


class Process:
    """`serve` in a process of its own, in front of one server."""

    PROGRAM = (
        "import sys\n"
        "from pathlib import Path\n"
        "from aegis.api.targets import Target\n"
        "from aegis.gateway.server import serve\n"
        "from aegis.gateway.settings import Settings\n"
        "from tests.gateway.site import Fixed\n"
        "target = Target('127.0.0.1', int(sys.argv[1]), ('m',), 'n', 'i')\n"
        "serve(Settings(host='127.0.0.1', port_file=Path(sys.argv[2]), grace_seconds=float(sys.argv[3])),"
        " Fixed((target,)))\n"
    )

    def __init__(self, port: int, directory: Path, grace: float) -> None:
        file = directory / "port"
        argv = [sys.executable, "-c", self.PROGRAM, str(port), str(file), str(grace)]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: file.exists() or self.process.poll() is not None)
        self.port = int(file.read_text())

    def end(self) -> tuple[int, str]:
        """The exit code, and all that it told."""
        _, told = self.process.communicate(timeout=30)
        return self.process.returncode, told


@pytest.fixture
def held(place: Site, tmp_path: Path) -> Iterator[tuple[Site, Process, asyncio.Event]]:
    """A gateway with a grace of 20 s, and an event that lets the server finish an answer that it has begun."""
    go = asyncio.Event()

    async def speak(served: Served) -> None:
        while await served.request():
            await served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
            await go.wait()
            await served.send(b"llo")

    process = Process(place.server(speak).port, tmp_path, 20.0)
    place.port = process.port
    yield place, process, go
    process.process.kill()
    process.process.wait()


def test_at_the_end_running_requests_finish(held: tuple[Site, Process, asyncio.Event]) -> None:
    place, process, go = held
    open_, running = place.client(), place.client().send(post())
    running.head()
    process.process.send_signal(signal.SIGTERM)
    wait_until(lambda: refuses(place))
    place.call(go.set)
    open_.send(post())
    head = open_.head()
    assert b"Connection: close\r\n" in head
    assert (running.read(5), open_.rest()) == (b"hello", b"hello")
    code, told = process.end()
    assert (code, "Traceback" in told) == (0, False)
    assert f"http://127.0.0.1:{place.port}/v1" in told


def test_a_second_signal_ends_it_at_once(held: tuple[Site, Process, asyncio.Event]) -> None:
    place, process, _ = held
    running = place.client().send(post())
    running.head()
    process.process.send_signal(signal.SIGINT)
    wait_until(lambda: refuses(place))
    process.process.send_signal(signal.SIGINT)
    code, told = process.end()
    assert (code, "not ended" in told, "Traceback" in told) == (0, True, False)


def refuses(place: Site) -> bool:
    try:
        place.client().close()
    except OSError:
        return True
    return False
