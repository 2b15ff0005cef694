"""One request: an instance is chosen and asked, another one if that fails, and its answer passed on."""

from __future__ import annotations

import asyncio
import errno
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from aegis.gateway.balance import Outcome
from aegis.gateway.refusal import Refusal
from aegis.gateway.usage import Tail

if TYPE_CHECKING:
    from aegis.gateway.answer import AnswerReader
    from aegis.gateway.balance import Backend
    from aegis.gateway.downstream import Downstream
    from aegis.gateway.gateway import Gateway
    from aegis.gateway.keys import Client
    from aegis.gateway.question import Question
    from aegis.gateway.request import Request
    from aegis.gateway.upstream import Connection

FAULT: Final = (
    HTTPStatus.INTERNAL_SERVER_ERROR
)  # the instance's, or the request's: a second instance will tell
BROKEN: Final = frozenset(
    {FAULT, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)
ELSEWHERE: Final = BROKEN | {HTTPStatus.TOO_MANY_REQUESTS}
HELD: Final = (
    1 << 16
)  # bytes of such an answer that are kept for the client; a longer one is passed on at once
GONE: Final = 499  # what logs tell of a client that did not wait for its answer, as nginx's do
OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
RETRY_SECONDS: Final = 2.0  # what a client is told to wait where nothing better is known


class Kept(Struct, frozen=True):
    """An answer that is passed on only if no other instance has a better one."""

    status: int
    head: bytes
    body: bytes
    until_close: bool


class Exchange:
    """One request of a client, from the moment it is whole until its answer is, or nobody wants it any more."""

    __slots__ = (
        *("_asked", "_connection", "_gateway", "_has", "_held", "_kept", "_marked", "_opening", "_tried"),
        *("attempts", "backend", "began", "client", "first", "question", "request", "size", "status"),
        *("tail", "time", "who", "why"),
    )

    def __init__(
        self, gateway: Gateway, client: Downstream, request: Request, question: Question, who: Client | None
    ) -> None:
        self.client = client
        self.request = request
        self.question = question
        self.who = who  # None: everybody may ask
        self.time = gateway.time
        self.began = gateway.time()
        self.first = 0.0  # when the first byte was passed on; 0: none was
        self.status = 0  # that the client was told
        self.size = 0  # bytes that it was sent
        self.attempts = 0
        self.why = ""  # it failed
        self.backend: Backend | None = None  # that has the request, or had it last
        self.tail = Tail() if gateway.account.tells else None
        self._gateway = gateway
        self._asked = 0.0  # when
        self._has = False  # the request counts as outstanding there
        self._marked = (0, 0.0)  # size and time of the last sweep that saw the answer grow
        self._tried: list[Backend] = []
        self._connection: Connection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._held: list[bytes] | None = None  # pieces of an answer that is not passed on yet
        self._kept: Kept | None = None

    def start(self) -> None:
        """Ask an instance, or wait for one.

        Raises:
            Refused: too many wait already.
        """
        gateway, question = self._gateway, self.question
        if not gateway.line.holds(question.model):
            backend = gateway.balance.choose(question.model, question.prefixes)
            if backend is not None:
                self.go(backend)
                return
        gateway.line.join(self, gateway.time())

    def go(self, backend: Backend) -> None:
        """Send the request to an instance."""
        gateway = self._gateway
        gateway.balance.begin(backend)
        self.backend, self._has = backend, True
        self.attempts += 1
        self._tried.append(backend)
        self._asked = gateway.time()
        connection = gateway.pool.take(backend.target)
        if connection is None:
            self._opening = asyncio.get_running_loop().create_task(self._open(backend))
        else:
            self._ask(connection)

    async def _open(self, backend: Backend) -> None:
        try:
            connection = await self._gateway.pool.open(backend.target)
        except OSError as error:
            self._opening = None
            problem = "not in time" if isinstance(error, TimeoutError) else error.strerror or error
            why = f"{backend.target.address} does not let us connect: {problem}"
            if error.errno in OURS:
                self._release(Outcome.CANCELLED)
                self._give_up(503, why)
            else:
                self._again(Outcome.REFUSED, why)
        else:
            self._opening = None
            self._ask(connection)

    def _ask(self, connection: Connection) -> None:
        gateway = self._gateway
        self._connection = connection
        connection.ask(self, self.request.to_server(gateway.upstream_key, guarded=gateway.keys is not None))

    # Told by the connection.

    def heard(self, reader: AnswerReader, body: bytes) -> None:
        """Pass a piece of the answer on, or hold it back while another instance might do better.

        A head alone is no answer yet: engines send that of a stream before they have begun with it.
        """
        if reader.interim:
            self.client.tell(reader.interim)
            reader.interim = b""
        if not body:
            return
        assert self.backend is not None  # noqa: S101 - it was asked
        self._gateway.balance.heard(self.backend)
        if self.first:
            self.size += len(body)
            if self.tail is not None:
                self.tail.feed(body)
            self.client.send(body)
        elif self._held is None:
            self._judge(reader, body)
        else:
            self._held.append(body)
            if sum(map(len, self._held)) > HELD:
                body, self._held = b"".join(self._held), None
                self._begin(reader.status, reader.passed_on(), body, until_close=reader.until_close)

    def whole(self, reader: AnswerReader) -> None:
        """End, or try elsewhere if the answer says that it should be."""
        self._connection = None
        outcome = Outcome.FAILED if reader.status in BROKEN else Outcome.ANSWERED
        if not self.first and self._held is None:
            self._judge(reader, b"")  # it has no body
        if self._held is None:
            self._release(outcome)
            self._end()
            return
        body, self._held = b"".join(self._held), None
        self._kept = Kept(reader.status, reader.passed_on(), body, reader.until_close)
        self._again(outcome, f"HTTP {reader.status}")

    def lost(self, why: str, *, stale: bool) -> None:
        """Try elsewhere, unless the client has got the beginning of this answer: then it must see that it is cut."""
        assert self.backend is not None  # noqa: S101 - it was asked
        self._connection, self._held = None, None
        if stale:
            self._opening = asyncio.get_running_loop().create_task(self._open(self.backend))
        elif self.first:
            self._release(Outcome.BROKE)
            self.why = why
            self._gateway.over(self)
            self.client.cut()
        else:
            self._again(Outcome.FAILED, f"{self.backend.target.address}: {why}")

    # Told by the client and by the clock.

    def cancel(self) -> None:
        """End at once: the client has left."""
        self.why = "the client left"
        self.status = self.status or GONE
        self._drop()
        self._release(Outcome.CANCELLED)
        self._gateway.line.leave(self)
        self._gateway.over(self, cancelled=True)

    def pause(self) -> None:
        """Let the server wait: the client does not read as fast as it writes."""
        if self._connection is not None:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        """Go on."""
        if self._connection is not None:
            self._connection.transport.resume_reading()

    def move(self) -> None:
        """Go to another instance, if there is one that has room: this one does not answer at all."""
        if not self._has or self.first or self._held is not None:
            return
        question = self.question
        backend = self._gateway.balance.choose(question.model, question.prefixes, but=self._tried)
        if backend is not None:
            self._drop()
            self._release(Outcome.CANCELLED)
            self._gateway.account.retried("stalled")
            self.go(backend)

    def sweep(self, now: float) -> None:
        """Give up what takes too long."""
        settings = self._gateway.settings
        if not self._has or self.client.paused:
            return
        if not self.first:
            if now - self._asked > settings.first_byte_seconds:
                self._drop()
                self._again(Outcome.FAILED, f"no answer within {settings.first_byte_seconds:g} s", 504)
        elif settings.idle_seconds is not None:
            if self._marked[0] != self.size:
                self._marked = self.size, now
            elif now - self._marked[1] > settings.idle_seconds:
                self._drop()
                self.lost(f"nothing more for {settings.idle_seconds:g} s", stale=False)

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error of the gateway."""
        self.status, self.why = refusal.status, refusal.message
        self._gateway.account.refused_late(refusal)
        self._gateway.over(self)
        self.client.refuse(refusal)

    # What comes of it.

    def _judge(self, reader: AnswerReader, body: bytes) -> None:
        """Pass the beginning of an answer on, or hold it back."""
        if reader.status in ELSEWHERE and self._may_go_on(reader.status):
            self._held = [body]
        else:
            self._begin(reader.status, reader.passed_on(), body, until_close=reader.until_close)

    def _begin(self, status: int, head: bytes, body: bytes, *, until_close: bool) -> None:
        self.first = self._gateway.time()
        self.status = status
        self.size = len(body)
        if self.tail is not None:
            self.tail.feed(body)
        self.client.begin(head, body, close=until_close)

    def _may_go_on(self, status: int) -> bool:
        if status == FAULT and self._kept is not None and self._kept.status == FAULT:
            return False
        return self.attempts < self._gateway.settings.attempts

    def _again(self, outcome: Outcome, why: str, status: int = 502) -> None:
        """Go to an instance that was not tried; without one pass on what was answered, or wait for one."""
        gateway, question = self._gateway, self.question
        self._release(outcome)
        left = self.attempts < gateway.settings.attempts
        if left:
            backend = gateway.balance.choose(question.model, question.prefixes, but=self._tried)
            if backend is not None:
                gateway.account.retried("busy" if outcome is Outcome.ANSWERED else outcome.value)
                self.go(backend)
                return
        if self._kept is not None:
            kept = self._kept
            self._begin(kept.status, kept.head, kept.body, until_close=kept.until_close)
            self._end()
        elif left:
            self._tried.clear()
            gateway.line.join(self, gateway.time(), first=True)
        else:
            self._give_up(status, why)

    def _give_up(self, status: int, why: str) -> None:
        tries = f"{self.attempts} attempts, the last" if self.attempts > 1 else "one attempt"
        message = f"no instance of {self.question.model!r} answered ({tries}: {why})"
        self.refuse(
            Refusal(
                status=status,
                message=message,
                kind="server_error",
                code="no_answer",
                retry_after=RETRY_SECONDS,
            )
        )

    def _end(self) -> None:
        self._gateway.over(self)
        self.client.done()

    def _drop(self) -> None:
        """Close the connection: vLLM then stops computing."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def _release(self, outcome: Outcome) -> None:
        if self._has:
            assert self.backend is not None  # noqa: S101 - it was asked
            self._has = False
            self._gateway.balance.end(self.backend, outcome)
            self._gateway.freed(self.backend)
