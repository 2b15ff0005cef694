"""Several registries and endpoints files followed as one, while they come, move, fall silent and go."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from aegis.api.targets import Target
from aegis.errors import NotFoundError, SiteError
from aegis.gateway import sources as module
from aegis.gateway.sources import Sources
from aegis.registry import sources as following
from aegis.registry.client import RegistryClient
from aegis.registry.sources import Source, Way
from aegis.registry.store import Store
from tests.ports import free_port
from tests.registry.conftest import Clock, Site, push, report, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from aegis.gateway.sources import Place
    from aegis.registry.sources import Address


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(following, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(following, "QUIET_SECONDS", 0.0)


@contextlib.contextmanager
def registry() -> Iterator[Site]:
    clock = Clock()
    with running(Store(wall=clock.wall, monotonic=clock.monotonic), clock) as site:
        yield site


@pytest.fixture
def first() -> Iterator[Site]:
    with registry() as site:
        yield site


@pytest.fixture
def second() -> Iterator[Site]:
    with registry() as site:
        yield site


def source(name: str, site: Site, prefix: str = "", **way: Any) -> Source[Place]:
    return Source(
        name=name,
        at=site.url,
        open=lambda: contextlib.nullcontext(Way(RegistryClient(site.url), **way)),
        prefix=prefix,
    )


class Given:
    """Sources that a test changes, and what is said of them."""

    def __init__(self, *sources: Source[Place]) -> None:
        self.sources: list[Source[Place]] = list(sources)
        self.problem = ""
        self.said: list[str] = []

    def look(self) -> list[Source[Place]]:
        if self.problem:
            raise SiteError(self.problem)
        return list(self.sources)

    def open(self) -> Sources:
        return Sources(self.look, self.said.append, pause=0.02)


def names(sources: Sources) -> list[str]:
    return sorted(each.instance for each in sources.now()[1])


def test_registries_are_one(first: Site, second: Site) -> None:
    first.client().push(push("n", report("a-0", model="m", host="h1")))
    second.client().push(push("n", report("a-0", model="m", host="h2"), report("same", host="h1")))
    given = Given(source("one", first), source("two", second, prefix="two/"))
    with given.open() as sources:
        sources.settle(20)
        revision, now = sources.now()
        assert set(now) == {
            Target("h1", 8000, ("m",), "h1", "a-0"),
            Target("h2", 8000, ("m",), "h2", "two/a-0"),
        }
        assert sorted(each.url for each in sources.registries) == sorted([first.url, second.url])
        assert (sources.names, sources.problem) == (("one", "two"), "")
        first.client().push(push("n", report("a-0", status="draining")))
        later, now = sources.wait(revision, 20)
        assert later > revision
        assert {each.host for each in now} == {"h2", "h1"}, "the other one's word for h1 counts now"
    assert given.said == []


def test_sources_come_move_and_go(first: Site, second: Site) -> None:
    first.client().push(push("n", report("a-0")))
    second.client().push(push("n", report("b-0", host="h2")))
    given = Given()
    with given.open() as sources:
        assert sources.now()[1] == ()
        given.sources = [source("one", first)]
        wait_until(lambda: names(sources) == ["a-0"])
        given.sources = [source("one", second)]
        wait_until(lambda: names(sources) == ["b-0"])
        given.sources = []
        wait_until(lambda: names(sources) == [])
        assert sources.registries == ()
        first.client().push(push("n", report("a-0"), report("a-1")))
        assert sources.wait(sources.now()[0], 0.2)[1] == (), "nobody follows it any more"


def test_who_is_silent_at_first_is_told_and_tried_again(first: Site) -> None:
    first.client().push(push("n", report("a-0")))
    dead = f"http://127.0.0.1:{free_port()}"
    urls = [dead]
    late: Source[Place] = Source(
        name="late", at="x", open=lambda: contextlib.nullcontext(Way(RegistryClient(urls[0])))
    )
    given = Given(late)
    with given.open() as sources:
        sources.settle(20)
        assert "late: the registry at" in sources.problem
        assert len(given.said) == 1
        assert given.said[0].startswith("warning: late: the registry at")
        urls[0] = first.url
        wait_until(lambda: names(sources) == ["a-0"])
        wait_until(lambda: not sources.problem)
        assert given.said[1:] == ["late answers again"]


def test_who_falls_silent_keeps_its_last_word() -> None:
    with registry() as site:
        site.client().push(push("n", report("a-0")))
        given = Given(source("one", site))
        sources = given.open()
        sources.__enter__()
        wait_until(lambda: names(sources) == ["a-0"])
    wait_until(lambda: sources.problem)
    assert names(sources) == ["a-0"]
    given.sources = []
    wait_until(lambda: names(sources) == [])
    assert sources.problem == ""
    sources.__exit__()


def test_a_short_silence_is_not_told(first: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "QUIET_SECONDS", 1000.0)
    client = RegistryClient(first.url)
    broken = threading.Event()

    def reach(addresses: Iterable[Address]) -> dict[Address, Address]:
        if broken.is_set():
            raise SiteError("cut")
        return {address: address for address in addresses}

    given = Given(Source(name="x", at="", open=lambda: contextlib.nullcontext(Way(client, reach))))
    with given.open() as sources:
        sources.settle(20)
        broken.set()
        wait_until(lambda: sources.problem == "x: cut")
        broken.clear()
        wait_until(lambda: sources.problem == "")
    assert given.said == []


def test_while_looking_fails_its_last_answer_stands(first: Site) -> None:
    first.client().push(push("n", report("a-0")))
    given = Given(source("one", first))
    with given.open() as sources:
        wait_until(lambda: names(sources) == ["a-0"])
        given.problem = "the login node is away"
        wait_until(lambda: sources.problem == "the login node is away")
        assert names(sources) == ["a-0"]
        given.problem = ""
        wait_until(lambda: sources.problem == "")
    assert given.said == ["warning: the login node is away"]


def test_what_is_not_there_at_the_start_is_an_error() -> None:
    def look() -> list[Source[Place]]:
        raise NotFoundError("there is no job `x`")

    with pytest.raises(NotFoundError), Sources(look, print):
        pass


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a server that tells its model."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": "m"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made.server_address[1]
    made.shutdown()
    thread.join()
    made.server_close()


def test_endpoints_files_beside_registries(first: Site, server: int, tmp_path: Path) -> None:
    first.client().push(push("n", report("a-0")))
    file = tmp_path / "end points; $(x)"
    file.write_text(f"127.0.0.1:{server}\n")
    listed: Source[Place] = Source(name=str(file), at="", open=lambda: contextlib.nullcontext(file))
    with Given(source("one", first), listed).open() as sources:
        wait_until(lambda: len(sources.now()[1]) == 2)
        assert {each.models for each in sources.now()[1]} == {(), ("m",)}
        assert len(sources.registries) == 1


def test_servers_are_reached_by_ways_and_forgotten_while_these_are_cut(first: Site) -> None:
    first.client().push(push("n", report("a-0"), report("a-1", port=8001)))
    cut = threading.Event()
    opened: list[int] = []

    def ways() -> Callable[[Iterable[Address]], dict[Address, Address]]:
        opened.append(len(opened))
        near = 9000 + opened[-1]

        def reach(addresses: Iterable[Address]) -> dict[Address, Address]:
            if cut.is_set():
                raise SiteError("the connection was cut")
            return {address: ("127.0.0.1", near) for address in addresses if address[1] == 8000}

        return reach

    far: Source[Place] = Source(
        name="far", at="", open=lambda: contextlib.nullcontext(Way(RegistryClient(first.url), ways()))
    )
    given = Given(far)
    with given.open() as sources:
        sources.settle(20)
        assert sources.now()[1] == (Target("127.0.0.1", 9000, (), "h", "a-0"),)
        cut.set()
        wait_until(lambda: sources.now()[1] == ())
        assert sources.problem == "far: the connection was cut"
        cut.clear()
        wait_until(lambda: [each.port for each in sources.now()[1]] == [9000 + opened[-1]])
        assert opened[-1] > 0
    assert given.said == ["warning: far: the connection was cut", "far answers again"]
