"""The dashboard's routes: the state, the page, its events, logs, and who may see what."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import pytest

from aegis.errors import NotFoundError, SiteError
from aegis.registry.overview.model import Overview
from tests.registry.conftest import DEADLINE, push, report, running
from tests.web.fleets import job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aegis.registry.store import Store
    from tests.registry.conftest import Clock, Process, Site

TOKEN: dict[str, Any] = {"Authorization": "Bearer secret"}


class Watcher:
    """A connection to `/ui/events`."""

    def __init__(self, site: Site, **headers: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", site.port), timeout=DEADLINE)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._socket.sendall(f"GET /ui/events HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while line := self._file.readline().decode().strip():
            name, _, value = line.partition(": ")
            self.headers[name] = value

    def next(self) -> tuple[str, dict[str, Any]]:
        """Return the next event."""
        while not (line := self._file.readline()).startswith(b"event: "):
            assert line, "the stream ended"
        data = self._file.readline()
        assert data.startswith(b"data: ")
        return line[7:].decode().strip(), json.loads(data[6:])

    def until(self, what: str) -> dict[str, Any]:
        """Return the next change of a collection."""
        while True:
            name, data = self.next()
            if name == "change" and data[what]:
                found: dict[str, Any] = data[what]
                return found

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "instances"
    folder.mkdir()
    (folder / "m-0.log").write_text("".join(f"line {number}\n" for number in range(1000)))
    (tmp_path / "secrets").write_text("s3cret")
    return folder


@pytest.fixture
def guarded(store: Store, clock: Clock, logs: Path) -> Iterator[Site]:
    with running(store, clock, token="secret", logs=logs) as site:
        store.apply(push("n", report("m-0", model="m")))
        yield site


def test_the_state_over_http(site: Site, store: Store, clock: Clock) -> None:
    store.apply(push("n", report("m-0", model="m")))
    store.apply(job(clock.wall()))
    overview = site.client().overview()
    assert [each.id for each in overview.instances] == ["m-0"]
    assert [each.handle for each in overview.jobs] == ["slurm://4711203"]
    assert site.ask("GET", "/overview").headers["Cache-Control"] == "no-store"


def test_what_is_told_of_jobs_is_no_service_unless_asked_for(site: Site, store: Store, clock: Clock) -> None:
    store.apply(push("n", report("m-0", model="m")))
    store.apply(job(clock.wall()))
    client = site.client()
    assert client.count() == 1
    assert [each.service_id for each in client.services()] == ["m-0"]
    assert client.count("job") == 1
    assert {each.service_type for each in client.watch().services} == {"vllm", "job"}


def test_the_page_lets_nothing_in_from_elsewhere(site: Site) -> None:
    answer = site.ask("GET", "/ui")
    assert answer.status == 200
    page, policy = answer.body.decode(), answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.findall(r"(?:src|href|action)=[\"']?(?![\"'#]|data:)", page)
    urls = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert urls == {"http://www.w3.org/2000/svg"}  # a name, that nobody fetches
    assert "{{" not in page
    assert "innerHTML" not in page


def test_events_begin_with_the_state_and_go_on_with_what_changes(site: Site, store: Store) -> None:
    store.apply(push("n", report("m-0", model="m")))
    watcher = Watcher(site)
    try:
        assert watcher.headers["Content-Type"] == "text/event-stream"
        name, state = watcher.next()
        assert name == "state"
        assert [each["id"] for each in state["instances"]] == ["m-0"]
        store.apply(push("n", report("m-0", model="m", status="failed", metadata={"reason": "gone"})))
        assert watcher.until("instances") == {"m-0": {"status": "failed", "reason": "gone"}}
        store.apply(push("n"))
        assert watcher.until("instances") == {"m-0": None}
        late = Watcher(site)
        assert late.next()[0] == "state"
        late.close()
    finally:
        watcher.close()


def test_a_registry_ends_though_somebody_watches(store: Store, clock: Clock) -> None:
    with running(store, clock) as site:
        watcher = Watcher(site)
        assert watcher.next()[0] == "state"
    watcher.close()


def test_the_end_of_a_log(guarded: Site) -> None:
    answer = guarded.ask("GET", "/ui/log?service=m-0&lines=2", **TOKEN)
    assert (answer.status, answer.body) == (200, b"line 998\nline 999\n")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert guarded.client("secret").log("m-0", 1) == "line 999\n"
    assert len(guarded.ask("GET", "/ui/log?service=m-0", **TOKEN).body.splitlines()) == 200


def test_a_log_is_for_who_has_the_token(guarded: Site) -> None:
    assert guarded.ask("GET", "/overview").status == 200
    assert guarded.ask("GET", "/ui/log?service=m-0").status == 401
    with pytest.raises(SiteError):
        guarded.client("wrong").log("m-0", 1)


def test_protected_reads_leave_only_the_empty_page_open(store: Store, clock: Clock) -> None:
    with running(store, clock, token="secret", protect_reads=True) as site:
        assert site.ask("GET", "/ui").status == 200
        for path in ("/overview", "/ui/events", "/ui/log?service=m-0"):
            assert site.ask("GET", path).status == 401
        assert site.ask("GET", "/overview", **TOKEN).status == 200
        watcher = Watcher(site, **TOKEN)
        assert watcher.next()[0] == "state"
        watcher.close()


@pytest.mark.parametrize(
    "name", ["../secrets", "..", ".", "/etc/passwd", "a\0b", "pipe", "link", "folder", "m-1", "\udcff"]
)
def test_only_logs_of_known_services_are_read(store: Store, clock: Clock, logs: Path, name: str) -> None:
    (logs / "link.log").symlink_to(logs.parent / "secrets")
    os.mkfifo(logs / "pipe.log")
    (logs / "folder.log").mkdir()
    (logs.parent / "secrets.log").write_text("s3cret")
    with running(store, clock, logs=logs) as site:
        query = f"/ui/log?service={quote(name, safe='', errors='surrogateescape')}"
        assert site.ask("GET", query).status == 404
        if name.isprintable():
            store.apply(push("n", report(name, model="m")))  # whoever may push may name it as he likes
        answer = site.ask("GET", query)
        assert answer.status == 404
        assert b"s3cret" not in answer.body
        with pytest.raises(NotFoundError):
            site.client().log(name, 5)


@pytest.mark.parametrize(
    "query", ["", "?lines=3", "?service=m-0&lines=x", "?service=m-0&lines=0", "?service=m-0&lines=-1"]
)
def test_a_wrong_question_for_a_log_is_refused(guarded: Site, query: str) -> None:
    assert guarded.ask("GET", f"/ui/log{query}", **TOKEN).status == 400


def test_a_log_comes_without_colours(guarded: Site, logs: Path) -> None:
    (logs / "m-0.log").write_bytes(b"\x1b[32mINFO\x1b[0m fine\r\n\x07\xff<b>\n")
    answer = guarded.ask("GET", "/ui/log?service=m-0", **TOKEN)
    assert answer.body.decode() == "INFO fine\n\ufffd<b>\n"


def test_the_registry_of_a_job_knows_its_logs(start: Any, logs: Path) -> None:
    process = start("--logs", str(logs), token="secret")
    process.client.push(push("n", report("m-0", model="m", metadata={"load": {"at": 1.0, "running": 3.0}})))
    assert process.client.log("m-0", 1) == "line 999\n"
    assert process.client.overview().models[0].now.running == 3.0
    assert msgspec.json.decode(process.client.request("GET", "/overview"), type=Overview).version
    assert process.end() == 0


def test_a_watcher_that_has_left_before_it_is_heard_is_no_error(start: Callable[..., Process]) -> None:
    registry = start()
    # stopped meanwhile, it finds the request and the end of the connection together
    registry.process.send_signal(signal.SIGSTOP)
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", registry.port), timeout=DEADLINE) as watcher:
            watcher.sendall(b"GET /ui/events HTTP/1.1\r\nHost: x\r\n\r\n")
    registry.process.send_signal(signal.SIGCONT)
    assert registry.client.overview().instances == ()
    assert registry.end() == 0
    assert "Error" not in registry.errors
