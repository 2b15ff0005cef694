"""Registries to talk to: one in a thread with a clock in hand, or a real process."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from msgspec import Struct

from aegis.registry.client import RegistryClient
from aegis.registry.model import Push, Report
from aegis.registry.server import make_app
from aegis.registry.store import Store
from tests.listening import let_nobody_in, turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE = 20.0


class Clock:
    """Wall and monotonic time that move only when told."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    def monotonic(self) -> float:
        return self.now


class Answer(Struct):
    """What came back over HTTP."""

    status: int
    body: bytes
    headers: dict[str, str]


class Site(Struct):
    """A registry in a thread."""

    port: int
    store: Store
    clock: Clock

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, token: str | None = None) -> RegistryClient:
        return RegistryClient(self.url, token=token, timeout=DEADLINE)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body, headers)
            with connection.getresponse() as response:
                return Answer(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()


class Process:
    """A registry in a process of its own, started through the command line."""

    def __init__(self, directory: Path, *arguments: str, token: str | None = None) -> None:
        self._errors = directory / f"stderr-{time.monotonic_ns()}"
        port_file = directory / f"port-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "aegis", "registry", "serve", "--host", "127.0.0.1", "--port", "0"]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, "--port-file", str(port_file), *arguments],
                stderr=errors,
                env=environment(token),
            )
        try:
            wait_until(lambda: port_file.exists() or self.process.poll() is not None)
            assert self.process.poll() is None, self.errors
        except BaseException:
            self.kill()
            raise
        self.port = int(port_file.read_text())
        self.client = RegistryClient(f"http://127.0.0.1:{self.port}", token=token)

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)


def environment(token: str | None = None) -> dict[str, str]:
    """Return this environment with a proxy that must be ignored, and just this token."""
    result = {key: value for key, value in os.environ.items() if not key.startswith("AEGIS_")}
    result |= {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    return result | ({"AEGIS_REGISTRY_TOKEN": token} if token else {})


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def report(service_id: str, **changes: Any) -> Report:
    """Return a healthy report, changed as told; keyword `model` goes to the metadata."""
    metadata = changes.pop("metadata", {}) | ({"model": changes.pop("model")} if "model" in changes else {})
    given: dict[str, Any] = {
        "host": "h",
        "port": 8000,
        "service_type": "vllm",
        "status": "healthy",
        "age": 0.0,
    }
    given |= changes
    return Report(service_id=service_id, metadata=metadata, **given)


def push(node: str, *reports: Report) -> Push:
    return Push(node=node, services=reports)


@contextmanager
def running(store: Store, clock: Clock, port: int = 0, **options: Any) -> Iterator[Site]:
    loop = asyncio.new_event_loop()
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(DEADLINE)

    async def start() -> web.AppRunner:
        runner = web.AppRunner(make_app(store, **options), shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        return runner

    async def finish(runner: web.AppRunner) -> None:
        """End what aiohttp leaves for later: a loop that stops under a task is a warning, and so an error here."""
        await let_nobody_in([listener.fileno()])
        await runner.cleanup()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await turn()

    try:
        runner = call(start())
        try:
            yield Site(runner.addresses[0][1], store, clock)
        finally:
            call(finish(runner))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        listener.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(wall=clock.wall, monotonic=clock.monotonic, revision=100, history=50)


@pytest.fixture
def site(store: Store, clock: Clock) -> Iterator[Site]:
    with running(store, clock) as running_site:
        yield running_site


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Return a function that starts registries, which are ended with the test."""
    started: list[Process] = []

    def starter(*arguments: str, token: str | None = None) -> Process:
        started.append(Process(tmp_path, *arguments, token=token))
        return started[-1]

    yield starter
    for process in started:
        process.kill()
        assert "Traceback" not in process.errors
