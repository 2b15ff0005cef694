"""A server that streams as fast as Python can, to measure a load generator beyond the rate of a simulated engine.

Each request has a clock of its own: TTFT_MS to the first token, ITL_MS to each further one. `/metrics` tells, under vLLM's
names, what these came to.

    python source.py TTFT_MS ITL_MS TOKENS
"""

from __future__ import annotations

import socket
import sys
from time import monotonic
from typing import TYPE_CHECKING

from aegis.bench.loop import READABLE, Loop
from aegis.processes import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Callable

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
EVENT = (
    b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1700000000,"model":"m",%b}\n\n'
)
TOKEN = b'"choices":[{"index":0,"text":" lorem","logprobs":null,"finish_reason":null,"token_ids":null}]'
USAGE = b'"choices":[],"usage":{"prompt_tokens":32,"completion_tokens":%d}'
DONE = b"data: [DONE]\n\n"


class Sum:
    """Seconds of one kind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds = 0.0
        self.count = 0

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self.count += 1

    def lines(self) -> str:
        return f"vllm:{self.name}_sum {self.seconds}\nvllm:{self.name}_count {self.count}\n"


class Source:
    """The server: requests are read, and answered by the clock."""

    def __init__(self, ttft: float, itl: float, tokens: int) -> None:
        self.ttft, self.itl, self.tokens = ttft, itl, tokens
        self.token = chunk(EVENT % TOKEN)
        self.last = self.token + chunk(EVENT % (USAGE % tokens)) + chunk(DONE) + chunk(b"")
        self.first_tokens, self.gaps = Sum("time_to_first_token_seconds"), Sum("inter_token_latency_seconds")
        self.loop = Loop()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.loop.watch(self.listener.fileno(), READABLE, self.accept)
        self.loop.at(monotonic() + 86_400, lambda: None)  # a loop has a timer

    def accept(self, _events: int) -> None:
        connection, _ = self.listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.loop.watch(connection.fileno(), READABLE, self.reader(connection))

    def reader(self, connection: socket.socket) -> Callable[[int], None]:
        got = b""

        def read(_events: int) -> None:
            nonlocal got
            data = received(connection)
            got += data
            head, end, body = got.partition(b"\r\n\r\n")
            if not data:
                self.drop(connection)
            elif head.startswith(b"GET "):
                connection.send(PAGE + (self.first_tokens.lines() + self.gaps.lines()).encode())
                self.drop(connection)
            elif end and len(body) == int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]):
                got = b""
                self.stream(connection)

        return read

    def drop(self, connection: socket.socket) -> None:
        self.loop.forget(connection.fileno())
        connection.close()

    def stream(self, connection: socket.socket) -> None:
        arrived = before = monotonic()
        due = arrived + self.ttft
        left = self.tokens

        def token() -> None:
            nonlocal before, due, left
            now = monotonic()
            first = left == self.tokens
            (self.first_tokens if first else self.gaps).add(now - before)
            before, left = now, left - 1
            data = self.token if left else self.last
            try:
                connection.send(STREAM + data if first else data)
            except OSError:  # the client has left
                return
            if left:
                due += self.itl
                self.loop.at(due, token)

        self.loop.at(due, token)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:
        return b""


def main() -> None:
    raise_file_limit()
    ttft, itl, tokens = sys.argv[1:]
    source = Source(float(ttft) / 1000, float(itl) / 1000, int(tokens))
    print("http://127.0.0.1:%d" % source.listener.getsockname()[1], file=sys.stderr, flush=True)  # noqa: UP031 - short
    source.loop.run(lambda: True)


if __name__ == "__main__":
    main()
