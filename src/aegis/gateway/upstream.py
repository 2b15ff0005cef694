"""Connections to instances: each for one request at a time, kept open between them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol, cast

from aegis.gateway.answer import AnswerReader, BadAnswer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis.api.targets import Target

KEEP_ALIVE_SECONDS: Final = 4.0  # below uvicorn's 5: the side that sends must be the one that closes


class Asker(Protocol):
    """Whoever waits for an answer on a connection."""

    def heard(self, reader: AnswerReader, body: bytes) -> None:
        """Take a piece of the answer; the reader has its head. Called with every byte that comes."""

    def whole(self, reader: AnswerReader) -> None:
        """Know that the answer is whole; the connection is free for others, or closed."""

    def lost(self, why: str, *, stale: bool) -> None:
        """Know that there is no (further) answer; stale: the connection had been closed before the request came."""


class Connection(asyncio.Protocol):
    """A connection to an instance."""

    __slots__ = ("_asker", "_reader", "_used", "address", "freed", "pool", "transport")

    transport: asyncio.Transport  # from connection_made on

    def __init__(self, pool: Pool, address: tuple[str, int]) -> None:
        self.pool = pool
        self.address = address
        self.freed = 0.0  # when it was last given back
        self._asker: Asker | None = None
        self._reader = AnswerReader()
        self._used = False  # has given an answer

    def ask(self, asker: Asker, request: Iterable[bytes]) -> None:
        """Send a request, and tell somebody what comes of it."""
        self._asker = asker
        self._reader.begin()
        for piece in request:
            self.transport.write(piece)

    def abort(self) -> None:
        """Close at once; nobody is told."""
        self._asker = None
        self.transport.abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        asker, reader = self._asker, self._reader
        if asker is None:  # nobody asked
            self.transport.abort()
            return
        try:
            body = reader.feed(data)
        except BadAnswer as error:
            self.abort()
            asker.lost(f"what it answered is wrong: {error}", stale=False)
            return
        asker.heard(reader, body)
        if reader.done and self._asker is asker:
            self._finish(asker)

    def connection_lost(self, error: Exception | None) -> None:
        asker, self._asker = self._asker, None
        self.pool.forget(self)
        if asker is None:
            return
        if error is None and self._reader.end():
            asker.whole(self._reader)
        else:
            why = f"the connection was cut: {error}" if error else "the connection was cut"
            asker.lost(why, stale=self._used and self._reader.untouched)

    def _finish(self, asker: Asker) -> None:
        self._asker = None
        self._used = True
        if (
            self._reader.keep_alive
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        ):
            if not self.transport.is_reading():
                self.transport.resume_reading()
            self.pool.give_back(self)
        else:
            self.transport.abort()
        asker.whole(self._reader)


class Pool:
    """The connections that are open and free, the last used first."""

    def __init__(self, connect_seconds: float) -> None:
        self._connect_seconds = connect_seconds
        self._free: dict[tuple[str, int], list[Connection]] = {}

    def take(self, target: Target) -> Connection | None:
        """Return a free connection to an instance, if there is one."""
        free = self._free.get((target.host, target.port))
        while free:
            connection = free.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def open(self, target: Target) -> Connection:
        """Open a connection to an instance.

        Raises:
            OSError: it does not let us connect (TimeoutError: not in time).
        """
        address = (target.host, target.port)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await loop.create_connection(lambda: Connection(self, address), *address)
        except UnicodeError:
            raise OSError(f"{target.host!r} is no name of a machine") from None
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        connection.freed = asyncio.get_running_loop().time()
        self._free.setdefault(connection.address, []).append(connection)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is closed."""
        free = self._free.get(connection.address, [])
        if connection in free:
            free.remove(connection)

    def sweep(self, now: float) -> None:
        """Close what was not used for long, by the event loop's clock."""
        for address, free in list(self._free.items()):
            old = [each for each in free if now - each.freed > KEEP_ALIVE_SECONDS]
            for connection in old:  # the oldest come first
                connection.abort()
            del free[: len(old)]
            if not free:
                del self._free[address]

    def close(self) -> None:
        """Close all that are free."""
        self.sweep(float("inf"))
