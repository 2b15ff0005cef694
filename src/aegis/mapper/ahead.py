"""Rows read by a thread, a little ahead of who takes them: a slow file system stalls no request."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.mapper.rows import Row

CHUNK_ROWS: Final = 256
CHUNK_BYTES: Final = 4 << 20


class Ahead:
    """An iterator of rows with at most two chunks in memory: the one that is taken from, and the next."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self._ready: deque[Row] = deque()
        self._next: asyncio.Task[deque[Row]] | None = None

    async def take(self) -> Row | None:
        """Return the next row, or None at the end."""
        if not self._ready:
            self._ready = await (self._next or asyncio.create_task(asyncio.to_thread(self._read)))
            self._next = asyncio.create_task(asyncio.to_thread(self._read)) if self._ready else None
        return self._ready.popleft() if self._ready else None

    async def close(self) -> None:
        """Wait for the thread."""
        if self._next:
            await asyncio.gather(self._next, return_exceptions=True)

    def _read(self) -> deque[Row]:
        chunk: deque[Row] = deque()
        size = 0
        for row in self._rows:
            chunk.append(row)
            size += len(row.body)
            if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
                break
        return chunk
