"""The connection to a client: its requests one after the other, and the bytes of their answers."""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from math import ceil, inf
from typing import TYPE_CHECKING, Final, cast

from aegis.gateway.answer import closing
from aegis.gateway.refusal import Refusal
from aegis.gateway.request import Refused, RequestReader

if TYPE_CHECKING:
    from aegis.gateway.exchange import Exchange
    from aegis.gateway.gateway import Gateway
    from aegis.gateway.request import Request

OTHERS: Final = frozenset(
    {b"/tokenize", b"/detokenize", b"/pooling", b"/classify", b"/rerank", b"/v2/rerank", b"/score"}
)
AHEAD: Final = 16  # requests that are read while one is answered
SLOWEST: Final = 64 * 2**10  # bytes a second: a body that comes faster may take as long as it likes
LINGER_SECONDS: Final = (
    2.0  # for the client to read why, before the connection is closed under what it still sends
)
REFUSED_LATE: Final = Refusal(status=408, message="the request did not come in time", code="too_slow")
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Downstream(asyncio.Protocol):
    """A connection to a client."""

    transport: asyncio.Transport  # from connection_made on

    def __init__(self, gateway: Gateway) -> None:
        settings = gateway.settings
        self.paused = False  # the client reads slower than it is written to
        self._gateway = gateway
        self._reader = RequestReader(settings.max_head, settings.max_body)
        self._refused: Refused | None = None  # after what is read already, nothing more can be
        self._exchange: Exchange | None = None  # of the request that is answered now
        self._request: Request | None = None  # the same
        self._last = False  # the connection ends with the answer that is under way
        self._deaf = False  # what comes is thrown away
        self._mark = ("", 0)
        self._marked = 0.0  # when a sweep first saw this

    @property
    def address(self) -> str:
        """Where the client is."""
        peer = self.transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""

    @property
    def idle(self) -> bool:
        """Whether nothing is asked and nothing is answered."""
        return self._exchange is None and self._reader.stage == "idle" and not self._reader.ready

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._gateway.clients.add(self)
        self._marked = self._gateway.time()
        sock = transport.get_extra_info("socket")
        if sock is not None:  # a client whose machine is gone is found out
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            self._reader.feed(data)
        except Refused as refused:
            self._refused, self._deaf = refused, True
        if self._exchange is None:
            self._advance()
        elif len(self._reader.ready) > AHEAD:
            self.transport.pause_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        self._gateway.clients.discard(self)
        self._deaf = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()

    def pause_writing(self) -> None:
        self.paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self.paused = False
        if self._exchange is not None:
            self._exchange.resume()
        else:
            self._advance()

    # Called by the exchange.

    def tell(self, interim: bytes) -> None:
        """Pass on what comes before an answer (1xx), if the client knows of such things."""
        if self._request is not None and self._request.minor:
            self.transport.write(interim)

    def begin(self, head: bytes, body: bytes, *, close: bool) -> None:
        """Send the beginning of an answer; `close` where it ends with the connection."""
        if self._ends_with(close=close):
            head = closing(head)
        self.transport.write(head + body)

    def send(self, body: bytes) -> None:
        """Send more of it."""
        self.transport.write(body)

    def done(self) -> None:
        """Go on to the next request: the answer is whole."""
        self._exchange = self._request = None
        if self._last:
            self._close()
        else:
            self._advance()

    def cut(self) -> None:
        """Break the connection, so that the client sees that its answer is not whole."""
        self._exchange = None
        self.transport.abort()

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error of the gateway, instead of an instance."""
        self._answer(refusal)
        self.done()

    # Called by the gateway's clock.

    def sweep(self, now: float) -> None:
        """Give up a client that takes too long; the same state in two sweeps is one that lasts."""
        mark, limit = self._state()
        if mark != self._mark:
            self._mark, self._marked = mark, now
        elif now - self._marked > limit:
            if mark[0] in {"head", "body"}:
                self._refuse_all(REFUSED_LATE)
            else:
                self.transport.abort()

    def _state(self) -> tuple[tuple[str, int], float]:
        """Return what the connection is doing, with a number that changes as it gets on, and how long it may."""
        settings, reader = self._gateway.settings, self._reader
        if self.paused:
            return ("unread", self.transport.get_write_buffer_size()), settings.send_seconds
        if self._deaf:
            return ("lingers", 0), LINGER_SECONDS
        if self._exchange is not None:
            return ("answered", reader.number), inf
        if reader.stage == "body":
            return ("body", reader.number), settings.body_seconds + reader.received / SLOWEST
        limit = settings.keep_alive_seconds if reader.stage == "idle" else settings.head_seconds
        return (reader.stage, reader.number), limit

    # What it does by itself.

    def _advance(self) -> None:
        """Begin with the next request, unless one is being answered."""
        reader, transport = self._reader, self.transport
        while self._exchange is None and not self.paused and reader.ready and not transport.is_closing():
            request = reader.ready.popleft()
            if request.method == b"POST" and is_for_model(request.path):
                self._serve(request)
            else:
                self._hand_over(request)
                return
        if self._exchange is None and not reader.ready and not self.paused:
            if self._refused is not None:
                self._refuse_all(self._refused.refusal)
            elif reader.expects:
                reader.expects = False
                transport.write(CONTINUE)
        if len(reader.ready) <= AHEAD and not transport.is_reading() and not transport.is_closing():
            transport.resume_reading()

    def _serve(self, request: Request) -> None:
        self._request = request
        try:
            self._exchange = self._gateway.admit(self, request)
        except Refused as refused:
            self._answer(refused.refusal)
            if self._last:
                self._close()

    def _hand_over(self, request: Request) -> None:
        """Let the server of pages have the connection; it closes it after its answer."""
        self._gateway.clients.discard(self)
        protocol = self._gateway.pages()
        self.transport.set_protocol(protocol)
        self.transport.resume_reading()
        protocol.connection_made(self.transport)
        protocol.data_received(request.to_page())

    def _answer(self, refusal: Refusal) -> None:
        head, body = answer_of(refusal)
        self.begin(head, body, close=False)

    def _refuse_all(self, refusal: Refusal) -> None:
        """Answer what is no request; what else comes on this connection cannot be understood."""
        self._gateway.account.refused(refusal, None, self.address, "", None)
        self._refused, self._deaf = None, True
        head, body = answer_of(refusal)
        self.transport.write(closing(head) + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _ends_with(self, *, close: bool) -> bool:
        """Return whether the connection ends with the answer that begins."""
        request = self._request
        self._last = close or request is None or not request.keep_alive or self._gateway.draining
        return self._last

    def _close(self) -> None:
        self._deaf = True
        self.transport.close()


def is_for_model(path: bytes) -> bool:
    """Return whether a request with a body goes to the instances of the model that it names."""
    return path.startswith(b"/v1/") or path in OTHERS


def answer_of(refusal: Refusal) -> tuple[bytes, bytes]:
    """Return head and body of an answer."""
    body = refusal.body
    status = HTTPStatus(refusal.status)
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if refusal.retry_after is not None:
        lines.append(f"Retry-After: {max(1, ceil(refusal.retry_after))}")
    if status == HTTPStatus.UNAUTHORIZED:
        lines.append('WWW-Authenticate: Bearer realm="aegis"')
    return "\r\n".join((*lines, "\r\n")).encode(), body
