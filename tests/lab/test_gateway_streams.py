"""Streams through a gateway in front of real (simulated) servers, one of which is killed."""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from aegis.api.targets import Target
from tests.engines.conftest import Sim
from tests.gateway.site import Site, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.lab

STREAMS = 64
TOKENS = 200  # six seconds: longer than it takes to start all of them


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[..., Sim]]:
    """Start simulated servers that are ended with the test."""
    started: list[Sim] = []

    def start(*arguments: str) -> Sim:
        started.append(Sim(tmp_path, "m", *arguments))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def place() -> Iterator[Site]:
    """A place for a gateway."""
    place = Site()
    yield place
    place.close()


class Stream(threading.Thread):
    """One client that reads one stream to its end, whichever that is."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.number = number
        self.status = 0
        self.began = False
        self.events: list[Any] = []
        self.whole = False

    def run(self) -> None:
        with ExitStack() as stack:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            stack.callback(connection.close)
            body = {
                "model": "m",
                "messages": [{"role": "user", "content": f"question {self.number}"}],
                "max_tokens": TOKENS,
                "stream": True,
            }
            try:
                connection.request("POST", "/v1/chat/completions", json.dumps(body).encode())
                response = connection.getresponse()
                self.status = response.status
                for line in response:
                    self.began = True
                    if line.startswith(b"data: {"):
                        self.events.append(json.loads(line[6:]))
                    self.whole = self.whole or line == b"data: [DONE]\n"
            except (http.client.HTTPException, OSError):
                pass


def test_a_killed_server_breaks_only_its_own_streams(place: Site, servers: Callable[..., Sim]) -> None:
    sims = [servers("--ttft-ms", "50", "--itl-ms", "30", "--output-tokens", "1000") for _ in range(2)]
    targets = [Target("127.0.0.1", sim.port, ("m",), "n", f"m-{n}") for n, sim in enumerate(sims)]
    place.serve()
    place.sources.change(*targets)
    wait_until(lambda: len(place.gateway.balance.backends) == 2)
    streams = [Stream(place.port, number) for number in range(STREAMS)]
    for stream in streams:
        stream.start()
    wait_until(lambda: all(stream.began for stream in streams))
    later = [Stream(place.port, STREAMS + number) for number in range(16)]
    on_first = place.gateway.balance.backends[0].outstanding
    for stream in later:
        stream.start()
    wait_until(lambda: len(place.gateway.exchanges) == STREAMS + len(later))
    sims[0].process.kill()
    for stream in (*streams, *later):
        stream.join(60)
    broken = [stream for stream in streams if not stream.whole]
    assert len(broken) == on_first == STREAMS // 2
    assert all(len(stream.events) == TOKENS + 1 for stream in (*streams, *later) if stream.whole)
    assert all(stream.whole or stream.began for stream in later)  # what had not begun was asked again
