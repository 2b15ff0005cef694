"""One request at a time on one connection, with the time of every event as it is read from the socket."""

from __future__ import annotations

import errno
import os
import select
import socket
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from aegis.bench.loop import READABLE, WRITABLE
from aegis.bench.wire import Answer, Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aegis.api.targets import Target
    from aegis.bench.loop import Loop

CONNECT_SECONDS: Final = 10.0
READ: Final = 1 << 16  # bytes
IN_PROGRESS: Final = {0, errno.EINPROGRESS}
# Family and address of a socket, as getaddrinfo tells them.
Address = tuple[int, Any]


class Stale(Failed):
    """The server closed an idle connection just as the request went out: it has not seen the request."""


def resolve(target: Target) -> tuple[Address, ...]:
    """Return the addresses of a server; none where its name means nothing."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple((family, address) for family, _, _, _, address in found)


class Connection:
    """A connection to one server: opened with its first request."""

    __slots__ = (
        "_addresses",
        "_answer",
        "_answered",
        "_descriptor",
        "_loop",
        "_recv",
        "_socket",
        "_unsent",
        "_used",
        "_where",
        "free",
    )

    _answer: Answer  # from the first request on

    def __init__(self, loop: Loop, where: str, addresses: Sequence[Address]) -> None:
        self.free = True  # may take a request
        self._loop = loop
        self._where = where
        self._addresses = list(addresses)  # not yet tried
        self._socket: socket.socket | None = None
        self._descriptor = -1
        self._answered: Callable[[Answer | Failed], None] | None = None
        self._unsent = b""
        self._used = False

    def ask(self, request: bytes, answered: Callable[[Answer | Failed], None]) -> None:
        """Send a request; call a function with its whole answer, or with why there is none: then it is closed."""
        self.free = False
        self._answer = Answer()
        self._answered = answered
        self._unsent = request
        if self._socket is None:
            self._connect("its name is not known")
        else:
            self._write(0)

    def close(self) -> None:
        """Drop the connection; nobody is told any more."""
        self.free = False
        self._answered = None
        if self._socket is not None:
            self._loop.forget(self._descriptor)
            self._socket.close()
            self._socket = None

    def _connect(self, problem: str) -> None:
        """Go on to the next address, where there is one."""
        if not self._addresses:
            self._fail(Failed(f"{self._where} does not answer: {problem}"))
            return
        family, address = self._addresses.pop(0)
        try:
            opened = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:  # of this machine: it lasts
            self._fail(Failed(f"no connection to {self._where}: {error.strerror}"))
            return
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._descriptor, self._recv = opened, opened.fileno(), opened.recv
        code = opened.connect_ex(address)
        if code in IN_PROGRESS:
            self._loop.watch(self._descriptor, WRITABLE, self._connected)
            self._loop.at(monotonic() + CONNECT_SECONDS, lambda: self._give_up(opened))
        else:
            self._next(code)

    def _next(self, code: int) -> None:
        """Try the next address after an error."""
        answered = self._answered
        self.close()
        self._answered = answered
        self._connect(os.strerror(code))

    def _connected(self, events: int) -> None:
        assert self._socket is not None  # noqa: S101 - it is watched
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._next(code)
        else:
            self._write(events)

    def _give_up(self, opened: socket.socket) -> None:
        if self._socket is opened and self._unsent:
            self._fail(Failed(f"{self._where} does not let us connect within {CONNECT_SECONDS:g} s"))

    def _write(self, events: int) -> None:
        assert self._socket is not None  # noqa: S101 - as above
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lost(error.strerror)
            return
        self._unsent = self._unsent[sent:]
        if self._unsent:
            self._loop.watch(self._descriptor, WRITABLE, self._write)
            if events & select.EPOLLIN:  # an error, before all was sent
                self._read(events)
        else:
            self._loop.watch(self._descriptor, READABLE, self._read)

    def _read(self, _events: int) -> None:
        try:
            data = self._recv(READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror)
            return
        if not data:
            self._lost(None)
        elif self._answered is None:  # nobody asked for it
            self.close()
        else:
            try:
                whole = self._answer.feed(self._loop.ready_at, data)
            except Failed as error:
                self._fail(error)
                return
            if whole:
                self._tell()

    def _lost(self, problem: str | None) -> None:
        """Tell the request that waits, if there is one, that the connection is closed."""
        cut = "the connection was cut" + (f": {problem}" if problem else "")
        try:
            whole = self._answered is not None and self._answer.end()
        except Failed as error:
            self._fail(error)
            return
        if whole:
            self._tell()
        elif self._used and not self._answer.response.status:
            self._fail(Stale(cut))
        else:
            self._fail(Failed(cut))

    def _tell(self) -> None:
        """Hand the answer over, and be free again where the server keeps the connection."""
        answered, answer = self._answered, self._answer
        self._answered = None
        self._used = True
        self.free = answer.response.keep_alive and not self._unsent
        if not self.free:
            self.close()
        assert answered is not None  # noqa: S101 - somebody asked
        answered(answer)

    def _fail(self, error: Failed) -> None:
        answered = self._answered
        self.close()
        if answered is not None:
            answered(error)
