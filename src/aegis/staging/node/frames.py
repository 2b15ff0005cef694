"""What goes down the chain: frames, each with pieces of files, so that it can be read without those before it.

    header: magic, kind, item, round, pieces, bytes of data
    a piece: file, length, offset, CRC-32 of its block from the block's start to the piece's end
    the data of all pieces

Small files go many in a frame; a block goes in several frames, for a node passes on what it has, and n nodes fill n frames.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HEADER = struct.Struct("<4sHHIII")
PIECE = struct.Struct("<IIQI")
MAGIC = b"AEGF"
DATA, END = 1, 2
DATA_LIMIT = 1 << 20  # bytes of data in a frame
PIECE_LIMIT = 1024  # in a frame
CAPACITY = HEADER.size + PIECE_LIMIT * PIECE.size + DATA_LIMIT


class FrameError(Exception):
    """What came is no frame."""


class Piece(NamedTuple):
    """A part of one block of a file."""

    file: int
    length: int  # bytes
    offset: int  # in the file
    crc: int  # of the block, from its start to the end of this piece


class Frame:
    """A frame as it is sent: bytes, which are given back to their pool when nobody needs them any more."""

    def __init__(self, key: tuple[int, int], pieces: Sequence[Piece], parts: Sequence[memoryview]) -> None:
        self.key = key  # item, round
        self.pieces = pieces
        self.parts = parts  # header with pieces, data; or all of it in one
        self.data = parts[-1]
        self.last = False
        self._holders = 1
        self._lock = threading.Lock()
        self._pool: Pool | None = None
        self._buffer: bytearray | None = None

    @property
    def size(self) -> int:
        """Bytes of data."""
        return sum(piece.length for piece in self.pieces)

    def hold(self) -> None:
        """Keep the bytes until released once more."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        """Give up the bytes."""
        with self._lock:
            self._holders -= 1
            done = not self._holders
        if done and self._pool is not None and self._buffer is not None:
            self._pool.put(self._buffer)


def encode(kind: int, key: tuple[int, int], pieces: Sequence[Piece], data: Iterable[memoryview]) -> Frame:
    """Return a frame of some pieces, which takes their data as it is."""
    parts = list(data)
    header = bytearray(HEADER.pack(MAGIC, kind, key[0], key[1], len(pieces), sum(map(len, parts))))
    for piece in pieces:
        header += PIECE.pack(*piece)
    frame = Frame(key, pieces, [memoryview(header), *parts])
    frame.last = kind == END
    return frame


class Pool:
    """A bounded number of buffers: who wants one waits until one is free, and so makes those who send wait."""

    def __init__(self, count: int) -> None:
        self._free: list[bytearray] = []
        self._left = count
        self._changed = threading.Condition()

    def get(self) -> bytearray:
        """Return a buffer for a frame."""
        with self._changed:
            while not self._free and not self._left:
                self._changed.wait()
            if self._free:
                return self._free.pop()
            self._left -= 1
        return bytearray(CAPACITY)

    def put(self, buffer: bytearray) -> None:
        """Take a buffer back."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()


def read(connection: socket.socket, pool: Pool) -> Frame | None:
    """Return the next frame; None at the end of the stream.

    Raises:
        FrameError: something else came.
        OSError: the connection broke.
    """
    buffer = pool.get()
    view = memoryview(buffer)
    try:
        if not fill(connection, view[: HEADER.size]):
            pool.put(buffer)
            return None
        size = HEADER.size + body_size(view)
        fill_rest(connection, view[HEADER.size : size])
    except BaseException:
        pool.put(buffer)
        raise
    frame = decode(view[:size])
    frame._pool, frame._buffer = pool, buffer  # noqa: SLF001 - it is of this module
    return frame


def body_size(header: memoryview) -> int:
    """Return how many bytes follow a header.

    Raises:
        FrameError: it is none.
    """
    magic, kind, _, _, pieces, data = HEADER.unpack_from(header)
    if magic != MAGIC or kind not in (DATA, END) or pieces > PIECE_LIMIT or data > DATA_LIMIT:
        raise FrameError(f"no frame: {bytes(header[: HEADER.size])!r}")
    size: int = pieces * PIECE.size + data
    return size


def decode(view: memoryview) -> Frame:
    """Return the frame in some bytes.

    Raises:
        FrameError: its pieces are not as long as its data.
    """
    _, kind, item, number, count, size = HEADER.unpack_from(view)
    start = HEADER.size + count * PIECE.size
    pieces = [Piece(*fields) for fields in PIECE.iter_unpack(view[HEADER.size : start])]
    if sum(piece.length for piece in pieces) != size or len(view) != start + size:
        raise FrameError("the pieces of a frame are not its data")
    frame = Frame((item, number), pieces, [view])
    frame.data = view[start:]
    frame.last = kind == END
    return frame


def fill(connection: socket.socket, view: memoryview) -> bool:
    """Read until the view is full; False when the stream ended before its first byte.

    Raises:
        FrameError: it ended later.
        OSError: the connection broke.
    """
    got = 0
    while got < len(view):
        count = connection.recv_into(view[got:], 0, socket.MSG_WAITALL)  # one call, not one for every packet
        if not count:
            if got:
                raise FrameError("the stream ends within a frame")
            return False
        got += count
    return True


def fill_rest(connection: socket.socket, view: memoryview) -> None:
    """Read until the view is full.

    Raises:
        FrameError: the stream ended before.
        OSError: the connection broke.
    """
    if len(view) and not fill(connection, view):
        raise FrameError("the stream ends within a frame")


def send(connection: socket.socket, parts: Sequence[memoryview]) -> None:
    """Send all of some buffers.

    Raises:
        OSError: the connection broke.
    """
    left = [part for part in parts if len(part)]
    while left:
        sent = connection.sendmsg(left[:64])
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if sent:
            left[0] = left[0][sent:]
