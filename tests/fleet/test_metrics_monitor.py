"""Several servers asked at once: good ones, and some that hang, drip, refuse or talk nonsense."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from aegis.fleet.metrics.monitor import Monitor, collect
from aegis.fleet.metrics.reading import Reading
from aegis.registry.model import Service
from aegis.schedulers.transport import Here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Behaviour = Callable[[socket.socket], None]
    Serve = Callable[[Behaviour], "Fake"]

PAGE = 'vllm:num_requests_running{engine="0"} 2\nvllm:generation_tokens_total{engine="0"} %d\n'
QUICK = 0.4
HERE = Here({})


def answer(body: str, status: str = "200 OK", *, length: bool = True) -> bytes:
    head = f"HTTP/1.1 {status}\r\n" + (f"Content-Length: {len(body)}\r\n" if length else "")
    return f"{head}\r\n{body}".encode()


class Fake:
    """A server that does with each connection what its test says."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(1 << 16)
                    self.behave(connection)

    def service(self, name: str) -> Service:
        host, port = self.listener.getsockname()
        return service(name, host, port)

    def stop(self) -> None:
        self.over.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


def service(name: str, host: str, port: int) -> Service:
    return Service(
        service_id=name,
        host=host,
        port=port,
        service_type="vllm",
        status="healthy",
        last_seen=0.0,
        metadata={"model": "m"},
    )


@pytest.fixture
def serve() -> Iterator[Serve]:
    fakes: list[Fake] = []

    def start(behave: Behaviour) -> Fake:
        fakes.append(Fake(behave))
        return fakes[-1]

    yield start
    for fake in fakes:
        fake.stop()


def says(body: str, status: str = "200 OK", *, length: bool = True) -> Behaviour:
    return lambda connection: connection.sendall(answer(body, status, length=length))


def test_all_instances_are_looked_at_twice_for_a_rate(serve: Serve) -> None:
    tokens = iter((100, 150))
    services = [
        serve(lambda connection: connection.sendall(answer(PAGE % next(tokens)))).service("a"),
        serve(says(PAGE % 7, length=False)).service("b"),
    ]
    monitor = Monitor("local://x", "m", HERE)
    first, second = monitor.look(services), monitor.look(services)
    assert "generation_tokens_per_sec" not in first.metrics
    assert second.metrics["generation_tokens_per_sec"] > 0
    assert second.metrics["requests_running"] == 4
    assert second.metrics["total_generation_tokens"] == 157
    assert [each.instance for each in second.instances] == ["a", "b"]
    assert second.instances[1].metrics["generation_tokens_per_sec"] == 0
    assert (second.job_id, second.model_name) == ("local://x", "m")


def test_one_that_hangs_and_one_that_drips_cost_the_deadline_once(serve: Serve) -> None:
    over = threading.Event()

    def hang(connection: socket.socket) -> None:
        del connection
        over.wait(10)

    def drip(connection: socket.socket) -> None:
        for byte in answer("x" * 1000):
            connection.sendall(bytes([byte]))
            if over.wait(QUICK / 4):
                return

    services = [
        serve(hang).service("hangs"),
        serve(drip).service("drips"),
        serve(says(PAGE % 1)).service("good"),
    ]
    began = time.monotonic()
    found = collect(services, HERE, QUICK)
    assert time.monotonic() - began < 4 * QUICK
    over.set()
    assert isinstance(found["good"], Reading)
    assert found["hangs"] == found["drips"] == f"no answer within {QUICK:g} s"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (answer("gone", "404 Not Found"), "it answers with HTTP 404"),
        (answer("hello 1\n"), "its page has no metrics of an engine"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP"),
        (b"", "without response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nvllm:num", "broken off"),
    ],
)
def test_what_is_no_page_of_metrics_is_told(serve: Serve, sent: bytes, said: str) -> None:
    found = collect([serve(lambda connection: connection.sendall(sent)).service("a")], HERE, 5.0)
    problem = found["a"]
    assert isinstance(problem, str)
    assert said in problem


def test_a_port_where_nobody_listens_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = collect([service("a", "127.0.0.1", port), service("b", "no such host.invalid", 1)], HERE, 5.0)
    assert found["a"] == "Connection refused"
    assert isinstance(found["b"], str)


def test_an_instance_that_missed_a_look_keeps_its_place(serve: Serve) -> None:
    answers = iter((answer(PAGE % 100), b"", answer(PAGE % 300)))
    services = [serve(lambda connection: connection.sendall(next(answers))).service("a")]
    monitor = Monitor("j", "m", HERE)
    looks = [monitor.look(services) for _ in range(3)]
    assert looks[1].instances[0].error
    assert looks[2].metrics["generation_tokens_per_sec"] > 0


def test_no_instance_is_no_figure() -> None:
    found = Monitor("j", "m", HERE).look([])
    assert (found.metrics, found.instances, found.window_seconds) == ({}, (), None)
