"""The source of an item, read ahead by several threads and cut into frames."""

from __future__ import annotations

import collections
import os
import threading
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from . import blocks
from .frames import DATA, DATA_LIMIT, PIECE_LIMIT, Frame, Piece, encode
from .items import File, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .items import Item

READERS = 4
AHEAD = 6  # loads, of a block each at most
SMALL = DATA_LIMIT  # bytes: files up to that go whole in a frame, with others


class SourceError(Exception):
    """The source cannot be read, or is not what was listed."""


class Source:
    """Reads blocks of an item; one round after the other."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.bytes_read = 0
        self._counting = threading.Lock()

    def frames(self, key: tuple[int, int], wanted: blocks.Ranges) -> Iterator[Frame]:
        """Yield the frames of some blocks, in their order.

        Raises:
            SourceError: a file cannot be read, or has changed since it was listed.
        """
        with ThreadPoolExecutor(READERS, "read") as pool:
            ahead: collections.deque[Future[list[Frame]]] = collections.deque()
            try:
                for load in loads(self.item, wanted):
                    ahead.append(pool.submit(self._load, key, load))
                    if len(ahead) >= AHEAD:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                for left in ahead:
                    left.cancel()

    def _load(self, key: tuple[int, int], load: list[int]) -> list[Frame]:
        if self.item.files[self.item.block(load[0])[0]].size > SMALL:
            return self._block(key, load[0])
        pieces, contents = [], []
        for number in load:
            index, _, length = self.item.block(number)
            data = self._read(self.item.files[index], 0, length)
            pieces.append(Piece(index, length, 0, zlib.crc32(data)))
            contents.append(data)
        return [encode(DATA, key, pieces, [memoryview(b"".join(contents))])]

    def _block(self, key: tuple[int, int], number: int) -> list[Frame]:
        index, offset, length = self.item.block(number)
        data = self._read(self.item.files[index], offset, length)
        frames, crc = [], 0
        for start in range(0, length, DATA_LIMIT):
            part = data[start : start + DATA_LIMIT]
            crc = zlib.crc32(part, crc)
            frames.append(encode(DATA, key, [Piece(index, len(part), offset + start, crc)], [part]))
        return frames

    def _read(self, file: File, offset: int, length: int) -> memoryview:
        path = self.path(file)
        data = memoryview(bytearray(length))
        got = 0
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while got < length:
                    count = os.preadv(handle, [data[got:]], offset + got)
                    if not count:
                        break
                    got += count
                found = os.fstat(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise SourceError(f"{shown(path)}: {error.strerror}") from error
        if (got, found.st_size, found.st_mtime_ns) != (length, file.size, file.mtime_ns):
            raise SourceError(f"{shown(path)}: changed while it was staged")
        with self._counting:
            self.bytes_read += length
        return data

    def path(self, file: File) -> bytes:
        """Return where a file is read."""
        return self.item.source if file.source in (b"", b".") else os.path.join(self.item.source, file.source)

    def check(self) -> None:
        """See that the empty files are still empty: of them no block is read.

        Raises:
            SourceError: one is gone, or has grown.
        """
        for file in self.item.files:
            if not file.size:
                self._read(file, 0, 0)


def loads(item: Item, wanted: blocks.Ranges) -> Iterator[list[int]]:
    """Yield the blocks that are read at once: one of a large file, or those of many small files."""
    gathered: list[int] = []
    size = 0
    for number in blocks.numbers(wanted):
        index, _, length = item.block(number)
        if item.files[index].size > SMALL:
            yield [number]
            continue
        if gathered and (size + length > DATA_LIMIT or len(gathered) == PIECE_LIMIT):
            yield gathered
            gathered, size = [], 0
        gathered.append(number)
        size += length
    if gathered:
        yield gathered
