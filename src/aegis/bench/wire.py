"""One request at a time on one connection, with the time of every event as the event loop reads it from the socket."""

from __future__ import annotations

import asyncio
from array import array
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from aegis.api.http import authorization
from aegis.api.sse import DONE, EventReader
from aegis.bench.response import BadResponse, ResponseReader

if TYPE_CHECKING:
    from aegis.api.targets import Target

OK: Final = HTTPStatus.OK.value  # an int: it is looked at for every event
CONNECT_SECONDS: Final = 10.0
ERROR_LETTERS: Final = 200
BUFFER: Final = memoryview(
    bytearray(1 << 18)
)  # of all connections: asyncio would take new memory for every read


class Usage(Struct):
    """Tokens as the server counts them."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class Event(Struct):
    """What matters of the last events of a stream."""

    choices: list[msgspec.Raw] = []
    usage: Usage | None = None


class Failed(Exception):
    """A request got no whole answer; the text says why."""


class Stale(Failed):
    """The server closed an idle connection just as the request went out: it has not seen the request."""


class Answer:
    """A streamed answer as it comes; its times are those of its events with a choice, once it is whole."""

    def __init__(self, whole: asyncio.Future[None]) -> None:
        self.times = array("d")
        self.usage: Usage | None = None
        self.response = ResponseReader()
        self.whole = whole
        self._events = EventReader()
        self._last = b""
        self._body: list[bytes] = []

    def feed(self, now: float, data: bytes) -> None:
        """Take bytes that came now.

        Raises:
            Failed: the server says that it failed.
            BadResponse: it does not speak HTTP.
        """
        body = self.response.feed(data)
        if self.response.status == OK:
            for event in self._events.feed(body):
                if event.startswith(b'{"error"'):
                    raise Failed(_reason(event))
                if event != DONE:
                    self._last = event
                    self.times.append(now)
        elif body:
            self._body.append(body)
        if self.response.done:
            self.finish()

    def finish(self) -> None:
        """Take the usage out of what came last; only now is JSON read.

        Raises:
            Failed: there was no event with a choice.
        """
        status = self.response.status
        if status != OK:
            raise Failed(f"HTTP {status}: {_reason(b''.join(self._body))}")
        try:
            last = msgspec.json.decode(self._last, type=Event) if self._last else Event()
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Failed(f"an event that is no JSON: {self._last[:ERROR_LETTERS]!r}") from None
        self.usage = last.usage
        if self.times and not last.choices:
            self.times.pop()
        if not self.times:
            raise Failed("the answer holds no event with a choice")


class Connection(asyncio.BufferedProtocol):
    """A connection to one server."""

    def __init__(self) -> None:
        self.free = True  # may take a request
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._used = False

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its whole answer.

        Raises:
            Failed: there is none; the connection is closed.
            Stale: the server had closed the connection before.
        """
        whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer = self._answer = Answer(whole)
        self.free = False
        if self._transport is None or self._transport.is_closing():
            raise Stale("the connection is closed")
        self._transport.write(request)
        try:
            await whole
        except BaseException:  # a time-out too: what may still come belongs to nobody
            self.close()
            raise
        self._used = True
        if answer.response.keep_alive:
            self.free = True
        else:
            self.close()
        return answer

    def close(self) -> None:
        """Drop the connection."""
        self.free = False
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the server."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the name is asyncio's
        """Lend the event loop the one buffer: it is read before the next read."""
        return BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Give an answer what came."""
        data = BUFFER[:nbytes].tobytes()
        answer = self._answer
        if answer is None:
            self.close()
            return
        try:
            answer.feed(monotonic(), data)
        except (Failed, BadResponse) as error:
            self._fail(error if isinstance(error, Failed) else Failed(str(error)))
        else:
            if answer.response.done:
                self._answer = None
                if not answer.whole.done():
                    answer.whole.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that waits, if there is one."""
        self.free = False
        answer = self._answer
        if answer is None:
            return
        if answer.response.end():
            try:
                answer.finish()
            except Failed as error:
                self._fail(error)
            else:
                answer.whole.set_result(None)
        elif self._used and not answer.response.status:
            self._fail(Stale("the server closed the connection"))
        else:
            self._fail(Failed(f"the connection was cut: {exc}" if exc else "the connection was cut"))

    def _fail(self, error: Failed) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.whole.done():
            answer.whole.set_exception(error)


async def connect(target: Target) -> Connection:
    """Return a connection to a server.

    Raises:
        Failed: there is none.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await loop.create_connection(Connection, target.host, target.port)
    except TimeoutError:
        raise Failed(f"{target.address} does not let us connect within {CONNECT_SECONDS:g} s") from None
    except (OSError, UnicodeError) as error:
        raise Failed(
            f"{target.address} does not answer: {getattr(error, 'strerror', None) or error}"
        ) from None
    return connection


def request_head(target: Target, path: str, api_key: str | None) -> bytes:
    """Return what stands before the length of a request's body."""
    fields = {
        "Host": target.address,
        "Accept": "text/event-stream",
        "Content-Type": "application/json",
        **authorization(api_key),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}Content-Length: ".encode("ascii", "replace")


def request(head: bytes, body: dict[str, Any]) -> bytes:
    """Return the bytes of a request."""
    data = msgspec.json.encode(body)
    return b"%b%d\r\n\r\n%b" % (head, len(data), data)


def _reason(body: bytes) -> str:
    """Return the message of an error in any of the forms that engines have, else its beginning."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    text = found if isinstance(found, str) else body.decode("utf-8", "replace")
    return " ".join(text.split())[:ERROR_LETTERS]
