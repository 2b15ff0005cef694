"""Simulated servers in processes of their own, on free ports of the loopback."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE = 30.0
CHAT = "/v1/chat/completions"


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def chat(tokens: int = 4, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": tokens, **more}


class Answer:
    """What came back over HTTP."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The stream's events; `data: [DONE]` must be the last."""
        *events, done, rest = self.body.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


class Sim:
    """One `aegis sim` process."""

    def __init__(self, directory: Path, model: str, *arguments: str) -> None:
        self._log = directory / f"sim-{time.monotonic_ns()}"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aegis", "sim", model, "--port", "0", *arguments],
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def port(self) -> int:
        """The port, once the server listens."""
        wait_until(lambda: "pid " in self.log or self.process.poll() is not None)
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.log)
        assert found, self.log
        return int(found[1])

    def connect(self, timeout: float = DEADLINE) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, path: str, body: Any = None, *, timeout: float = DEADLINE, **headers: str) -> Answer:
        """GET, or POST where there is a body; bytes are sent as they are."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect(timeout)
        try:
            connection.request("GET" if body is None else "POST", path, data, headers)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def send(self, path: str, body: Any) -> http.client.HTTPConnection:
        """POST without waiting for the answer."""
        connection = self.connect()
        connection.request("POST", path, json.dumps(body).encode())
        return connection

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        families = text_string_to_metric_families(self.ask("/metrics").body.decode())
        samples = [
            sample for family in families for sample in family.samples if sample.name == f"vllm:{name}"
        ]
        assert samples, name
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def running(self, count: int) -> Callable[[], bool]:
        return lambda: self.metric("num_requests_running") == count

    def exit_code(self) -> int:
        return self.process.wait(DEADLINE)

    def end(self) -> int:
        self.process.terminate()
        return self.exit_code()


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Callable[..., Sim]]:
    """Return a function that starts servers of model `m`, which end with the test and never show a traceback."""
    started: list[Sim] = []

    def start(*arguments: str, model: str = "m") -> Sim:
        started.append(Sim(tmp_path, model, *arguments))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()
        assert "Traceback" not in server.log, server.log
