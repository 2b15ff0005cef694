"""A gateway in a thread, with servers beside it that answer whatever bytes a test likes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from aegis.api.targets import Target
from aegis.gateway.gateway import Gateway
from aegis.gateway.server import running, tls_of
from aegis.gateway.settings import Settings
from tests.listening import let_nobody_in

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Coroutine

    from aegis.registry.client import RegistryClient

DEADLINE = 30.0
CHAT = "/v1/chat/completions"


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def longer(found: list[Any], number: int) -> bool:
    return len(found) > number


def post(
    body: bytes | dict[str, Any] | None = None, path: str = CHAT, *headers: str, version: str = "1.1"
) -> bytes:
    """The bytes of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body or {"model": "m", "messages": []}).encode()
    lines = (f"POST {path} HTTP/{version}", "Host: gateway", *headers, f"Content-Length: {len(data)}")
    return "\r\n".join((*lines, "\r\n")).encode() + data


def answer(body: bytes = b'{"ok":1}', status: int = 200, *headers: str) -> bytes:
    """The bytes of a plain answer."""
    lines = (f"HTTP/1.1 {status} Some", *headers, f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "\r\n")).encode() + body


class Served:
    """One connection at a server of a test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """The next request, head and body; nothing at the end of the connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            return error.partial
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        return head + await self.reader.readexactly(int(length[1]) if length else 0)

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def gone(self) -> None:
        """Return once the other side has closed."""
        with contextlib.suppress(ConnectionError):
            await self.reader.read()

    def reset(self) -> None:
        self.writer.transport.abort()


class Server:
    """A server that lets a function speak on each connection."""

    def __init__(self, site: Site, speak: Callable[[Served], Awaitable[None]], model: str) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._site = site
        self._speak = speak
        self._server = site.do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.target = Target("127.0.0.1", self.port, (model,), "n", f"i{self.port}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        served = Served(reader, writer)
        ask = served.request

        async def request() -> bytes:
            found = await ask()
            if found:
                self.requests.append(found)
            return found

        served.request = request  # type: ignore[method-assign]
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._speak(served)
        writer.close()

    def stop(self) -> None:
        """Listen no more; connections stay."""

        async def close() -> None:
            await let_nobody_in(each.fileno() for each in self._server.sockets)
            self._server.close()

        self._site.do(close())


class Client:
    """A client's connection, byte by byte."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), DEADLINE)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self._rest = b""

    def send(self, data: bytes) -> Self:
        self.socket.sendall(data)
        return self

    def read(self, size: int) -> bytes:
        """That many bytes."""
        while len(self._rest) < size:
            data = self.socket.recv(1 << 16)
            assert data, f"the end after {self._rest!r}"
            self._rest += data
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def skip(self, size: int) -> int:
        """Read that many bytes, and throw them away."""
        got, self._rest = len(self._rest), b""
        while got < size and (data := self.socket.recv(1 << 16)):
            got += len(data)
        return got

    def head(self) -> bytes:
        """All until the end of a head."""
        while b"\r\n\r\n" not in self._rest:
            data = self.socket.recv(1 << 16)
            assert data, f"the end after {self._rest!r}"
            self._rest += data
        return self.read(self._rest.index(b"\r\n\r\n") + 4)

    def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of an answer that tells its length."""
        head = self.head()
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        assert length, head
        return int(head[9:12]), head, self.read(int(length[1]))

    def error(self) -> tuple[int, Any, bytes]:
        """Status and error of an answer, and its head."""
        status, head, body = self.answer()
        return status, json.loads(body)["error"], head

    def rest(self) -> bytes:
        """All until the end of the connection.

        Raises:
            ConnectionResetError: it was cut.
        """
        pieces = [self._rest]
        self._rest = b""
        while data := self.socket.recv(1 << 16):
            pieces.append(data)
        return b"".join(pieces)

    def close(self) -> None:
        self.socket.close()


class Fixed:
    """Sources that a test changes."""

    problem = ""
    registries: tuple[RegistryClient, ...] = ()

    def __init__(self, targets: tuple[Target, ...]) -> None:
        self._targets, self._revision = targets, 0
        self._changed = threading.Condition()

    def change(self, *targets: Target) -> None:
        with self._changed:
            self._targets, self._revision = targets, self._revision + 1
            self._changed.notify_all()

    def now(self) -> tuple[int, tuple[Target, ...]]:
        with self._changed:
            return self._revision, self._targets

    def wait(self, revision: int, seconds: float) -> tuple[int, tuple[Target, ...]]:
        with self._changed:
            self._changed.wait_for(lambda: self._revision != revision, seconds)
            return self._revision, self._targets


class Site:
    """An event loop in a thread, with a gateway and servers."""

    def __init__(self) -> None:
        self.sources = Fixed(())
        self.gateway: Gateway
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = contextlib.AsyncExitStack()
        self._clients: list[Client] = []
        self._servers: list[Server] = []

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    def call(self, function: Callable[[], object]) -> None:
        """Call something in the loop."""
        self._loop.call_soon_threadsafe(function)

    def server(self, speak: Callable[[Served], Awaitable[None]], model: str = "m") -> Server:
        """Start a server."""
        self._servers.append(Server(self, speak, model))
        return self._servers[-1]

    def serve(self, *servers: Server, **settings: Any) -> Self:
        """Start the gateway in front of servers."""
        self.sources = Fixed(tuple(server.target for server in servers))
        known: dict[str, Any] = {"host": "127.0.0.1", "absent_seconds": 1.0}
        chosen = Settings(**known | settings)

        async def begin() -> None:
            self.gateway = Gateway(chosen)
            entered = await self._stack.enter_async_context(
                running(self.gateway, self.sources, tls_of(chosen))
            )
            self.port = entered.sockets[0].getsockname()[1]

        self.do(begin())
        return self

    def has_requests(self, number: int) -> bool:
        return len(self.gateway.exchanges) == number

    def client(self, context: ssl.SSLContext | None = None) -> Client:
        """A connection to the gateway."""
        self._clients.append(Client(self.port, context))
        return self._clients[-1]

    def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Send a request on a connection of its own, and return status, head and body."""
        return self.client().send(request).answer()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for server in self._servers:
            server.stop()

        async def end() -> None:
            await self._stack.aclose()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()


def answering(*answers: bytes) -> Callable[[Served], Awaitable[None]]:
    """What a server says that gives these answers, one to a request, the last one for ever."""
    left = list(answers)

    async def speak(served: Served) -> None:
        while await served.request():
            await served.send(left.pop(0) if len(left) > 1 else left[0])

    return speak
