"""How the nodes of one simulated server meet, and notice that another has gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Link: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]  # closes when either is forgotten

HELLO_SECONDS: Final = 10.0  # for the first line of a connection
RETRY_SECONDS: Final = 0.1


class Leader:
    """Rank 0: waits on the master port for all others."""

    def __init__(self, nnodes: int, lost: Callable[[int], None]) -> None:
        self.joined = asyncio.Event()  # all ranks are here
        self._nnodes = nnodes
        self._lost = lost
        self._members: set[int] = set()
        self._server: asyncio.Server | None = None

    async def open(self, port: int) -> None:
        """Listen on all addresses: the other nodes know one of them.

        Raises:
            OSError: the port is taken.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", port))
            self._server = await asyncio.start_server(self._member, sock=sock)
        except OSError:
            sock.close()
            raise

    async def _member(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            rank = await self._hello(reader)
            if rank is None:
                return
            self._members.add(rank)
            _keep_alive(writer)
            writer.write(b"welcome\n")
            if len(self._members) == self._nnodes - 1:
                self.joined.set()
            await until_closed(reader)
            self._lost(rank)
        finally:
            writer.close()

    async def _hello(self, reader: asyncio.StreamReader) -> int | None:
        """Return the rank that introduces itself, or None: not one of ours, or here already."""
        try:
            words = (await asyncio.wait_for(reader.readline(), HELLO_SECONDS)).split()
            rank, nnodes = int(words[1]), int(words[2])
        except (TimeoutError, OSError, ValueError, IndexError):
            return None
        fits = words[0] == b"aegis-sim" and nnodes == self._nnodes and 0 < rank < nnodes
        return rank if fits and rank not in self._members else None


async def join(address: str, port: int, rank: int, nnodes: int) -> Link:
    """Connect to rank 0, however long it takes to appear; the reader ends when rank 0 does.

    Raises:
        ConnectionRefusedError: rank 0 is there and does not want this rank.
    """
    while True:
        try:
            reader, writer = await asyncio.open_connection(address, port)
        except OSError:
            await asyncio.sleep(RETRY_SECONDS)
            continue
        # A free port of this very machine may be taken for the near end: then one is talking to oneself.
        if writer.get_extra_info("peername") != writer.get_extra_info("sockname"):
            break
        writer.transport.abort()
        await asyncio.sleep(RETRY_SECONDS)
    _keep_alive(writer)
    writer.write(b"aegis-sim %d %d\n" % (rank, nnodes))
    with contextlib.suppress(OSError):
        if await reader.readline() == b"welcome\n":
            return reader, writer
    raise ConnectionRefusedError(f"rank 0 at {address}:{port} refuses rank {rank} of {nnodes}")


async def until_closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1024):
            pass


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Notice within a minute that the other node has lost power."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
