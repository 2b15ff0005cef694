from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from aegis.errors import ConfigError, NotFoundError, RegistryUnreachable, SiteError
from aegis.registry.client import RegistryClient

from .conftest import Site, push, report, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.registry.store import Store

    from .conftest import Clock


@contextlib.contextmanager
def stranger(answer: bytes, *, drip: bool = False) -> Iterator[str]:
    """A server that answers every connection with these bytes, then keeps it open."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []
        over = threading.Event()

        def answer_all() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                kept.append(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(answer)
                    while drip and not over.wait(0.02):
                        connection.sendall(b"x")
                    if answer and not drip:
                        connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=answer_all)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()


def answer(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def test_every_call(site: Site) -> None:
    client = site.client()
    client.ping()
    assert client.push(push("n", report("a", model="m"), report("b"))).drain == ()
    assert [s.service_id for s in client.services("vllm", "healthy", "m")] == ["a"]
    assert [s.service_id for s in client.healthy(model="m", timeout=3)] == ["a"]
    assert client.count(status="healthy") == 2
    assert client.get("a").metadata == {"model": "m"}
    assert client.drain("a").service_id == "a"
    assert client.delete("b").service_id == "b"
    client.stop()
    acknowledgement = client.push(push("n", report("a")))
    assert (acknowledgement.drain, acknowledgement.stop) == (("a",), True)
    assert client.watch().stop


def test_unknown_ids(site: Site) -> None:
    for call in (site.client().get, site.client().drain, site.client().delete):
        with pytest.raises(NotFoundError, match="has no /services/a%20b"):
            call("a b")


def test_the_servers_reason_is_passed_on(site: Site) -> None:
    with pytest.raises(ConfigError, match="one of pending"):
        site.client().services(status="bogus")


def test_a_missing_token_is_told(store: Store, clock: Clock) -> None:
    with running(store, clock, token="right") as site:
        for token in (None, "wrong"):
            with pytest.raises(SiteError) as caught:
                site.client(token).stop()
            assert not isinstance(caught.value, RegistryUnreachable)
            assert caught.value.hint
            assert "AEGIS_REGISTRY_TOKEN" in caught.value.hint
        site.client("right").stop()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8471",
        "https://h:8471",
        "http://:8471",
        "http://h",
        "http://h:0",
        "http://h:99999",
        "http://h:x",
        "http://h:8471/x",
        "http://u:p@h:8471",
        "http://h:8471?x=1",
        "http://h h:8471",
        "http://h\n:8471",
        "http://[::1:8471",
    ],
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RegistryClient(url)
    assert caught.value.hint


@pytest.mark.parametrize("token", ["", "a\nb", "é"])
def test_a_token_that_fits_no_header_is_refused(token: str) -> None:
    with pytest.raises(ConfigError):
        RegistryClient("http://h:1", token=token)


def test_a_dead_registry_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RegistryUnreachable, match=f"http://127.0.0.1:{port} does not answer") as caught:
        RegistryClient(f"http://127.0.0.1:{port}/").services()
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70, "xn--a"])
def test_a_host_that_does_not_exist_is_an_error(host: str) -> None:
    with pytest.raises(RegistryUnreachable):
        RegistryClient(f"http://{host}:8471").ping()


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        answer("200 OK", b"<html>hello</html>"),
        answer("200 OK", b'{"object": "list"}'),
        answer("200 OK", b"\xff"),
        answer("200 OK", b'[{"service_id": 1}]'),
        answer("302 Found", b""),
        answer("404 Not Found", b'{"error": "no"}'),
        answer("404 Not Found", b"nginx"),
        answer("500 Internal Server Error", b'{"error": "oh"}'),
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[]",
    ],
)
def test_a_stranger_is_no_registry(sent: bytes) -> None:
    with stranger(sent) as url, pytest.raises(RegistryUnreachable):
        RegistryClient(url).services()


@pytest.mark.parametrize(
    ("sent", "drip"), [(b"", False), (b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", True)]
)
def test_a_hung_registry_does_not_hang_the_client(sent: bytes, drip: bool) -> None:
    began = time.monotonic()
    with stranger(sent, drip=drip) as url, pytest.raises(RegistryUnreachable, match=r"within 0\.3 s"):
        RegistryClient(url, timeout=0.3).services()
    assert time.monotonic() - began < 5
