"""Servers to measure: simulated ones in processes of their own, and scripted ones in this process."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aegis.api.targets import Target
from tests.engines.conftest import Sim, sim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["Sim", "scripted", "sim", "target_of"]


def target_of(server: Sim) -> Target:
    return Target("127.0.0.1", server.port, ("m",))


@asynccontextmanager
async def scripted(
    answer: Callable[[int, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Target]:
    """Serve each request (its number, and the way back) as a function says; ConnectionError closes."""
    number = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
                await reader.readexactly(int(length.split()[1]))
                number += 1
                await answer(number - 1, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1], ("m",))
