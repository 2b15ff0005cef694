"""An item on a node: built beside its destination, block by block, and published by one rename."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from . import blocks
from .check import THREADS, hash_of
from .items import BLOCK, shown
from .places import (
    FOREIGN,
    Lock,
    digest_line,
    free_bytes,
    held_bytes,
    is_foreign,
    manifest,
    open_to_write,
    places_of,
    published,
    read_log,
    remove,
    too_large,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .frames import Piece
    from .items import File, Item

SMALL = 1 << 20  # bytes: a smaller file is made when its data is there, not before
STEP = 1 << 26  # bytes that are reserved at once
RESERVE_SECONDS = 0.05  # for all of an item


class StoreError(Exception):
    """The item cannot be had on this node."""


class Store:
    """One item on this node."""

    linked = False  # whether files may be hard links to the source's: then they are never written

    def __init__(self, item: Item, suffix: str = "") -> None:
        self.item = item
        self.places = places_of(item, suffix)
        self.error = ""  # set: nothing more is written
        self.closed = False
        self.received = 0  # bytes written by this run
        self._lock = Lock(self.places.lock)
        self._done = bytearray(item.blocks)
        self._hashes = array.array("L", bytes(item.blocks * array.array("L").itemsize))
        self._left = item.blocks
        self._begun: dict[int, tuple[int, int]] = {}  # block -> bytes of it, hash so far
        self._counting = threading.Lock()
        self._log = -1
        self._reserve_until = 0.0

    # -- before the data

    def prepare(self, waiting: Callable[[], None]) -> bool:
        """Make the part ready, with what an earlier run has left; False when the destination is complete already.

        `waiting` is called before another job is waited for, which stages the same.

        Raises:
            StoreError: somebody's own is there, or no room.
            OSError: the destination cannot be written.
        """
        try:
            os.makedirs(os.path.dirname(self.places.destination), exist_ok=True)
            if not self._lock.take(wait=False):
                waiting()
                self._lock.take(wait=True)
            if published(self.places):
                self.abandon()
                return False
            self._refuse()
            self._open_part()
            self._make_tree()
        except BaseException:
            self.abandon()
            raise
        return True

    @property
    def missing(self) -> blocks.Ranges:
        """What is still needed."""
        return blocks.missing(self._done)

    @property
    def complete(self) -> bool:
        """Whether every block is there."""
        return not self._left

    def _refuse(self) -> None:
        if is_foreign(self.places):
            raise StoreError(f"{shown(self.places.destination)}: {FOREIGN}")
        need = self.item.size - held_bytes(self.places)
        _, free, parent = free_bytes(self.places.destination)
        if need > free:
            raise StoreError(too_large(self.places, need, free))
        if not os.access(parent, os.W_OK | os.X_OK):
            raise StoreError(f"{shown(parent)}: not writable")

    def _open_part(self) -> None:
        """Take over what an earlier run of the same list has left, or begin anew."""
        remove(self.places.old)
        noted = read_log(self.places)
        if noted is None:
            remove(self.places.part)
            remove(self.places.log)
            if not self.item.is_file:
                os.mkdir(self.places.part, 0o700)
        remove(self.places.part_manifest)
        self._log = os.open(self.places.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(
            self._log, b"\n" if noted else digest_line(self.item)
        )  # an earlier run may have ended within a line
        self._take_over(noted or {})

    def _take_over(self, noted: dict[int, int]) -> None:
        """Count what an earlier run has written, where it still has the hash that was noted."""
        with ThreadPoolExecutor(THREADS, "hash") as pool:
            for block, sound in zip(noted, pool.map(self._is_sound, noted.items())):
                if sound:
                    self._finish(block, noted[block])

    def _is_sound(self, noted: tuple[int, int]) -> bool:
        index, offset, _ = self.item.block(noted[0])
        path = self.places.path(self.item.files[index].path)
        with contextlib.suppress(OSError), open(path, "rb", buffering=0) as opened:
            own = self.linked or os.fstat(opened.fileno()).st_nlink == 1
            # whatever size the file has: over MPI, files grow as blocks come
            return own and hash_of(opened.fileno(), offset) == noted[1]
        return False

    def _make_tree(self) -> None:
        self._reserve_until = time.monotonic() + RESERVE_SECONDS
        for path, _ in self.item.directories:
            where = self.places.path(path)
            os.makedirs(where, 0o700, exist_ok=True)
            os.chmod(where, 0o700)
        for file in self.item.files:
            if file.size > SMALL or not file.size:
                self._make_file(file)
        for path, target in self.item.links:
            where = self.places.path(path)
            remove(where)
            os.symlink(target, where)

    def _make_file(self, file: File) -> None:
        """Give a file its size: what cannot be had is known before it is needed."""
        handle = open_to_write(self.places.path(file.path), os.O_CREAT)
        try:
            os.ftruncate(handle, file.size)
            if file.size:
                self._reserve(handle, file)
        finally:
            os.close(handle)

    def _reserve(self, handle: int, file: File) -> None:
        """Reserve room, where that is quick: a file system in memory takes page by page, as long as writing does."""
        try:
            for offset in range(0, file.size, STEP):
                if time.monotonic() > self._reserve_until:
                    return
                os.posix_fallocate(handle, offset, min(STEP, file.size - offset))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # then writing will tell
                raise OSError(error.errno, error.strerror, file.path) from None

    # -- the data

    def write(self, pieces: Sequence[Piece], data: memoryview) -> None:
        """Hash and write some pieces, and note the blocks that they finish; what is not in order is left out.

        All pieces of a block come from the same thread.

        Raises:
            OSError: they cannot be written.
        """
        at = 0
        lines = []
        if self.closed:
            return
        for piece in pieces:
            block = self._write_piece(piece, data[at : at + piece.length])
            at += piece.length
            if block >= 0:
                lines.append((block, piece))
        if not lines:
            return
        text = b"".join(
            b"%d %d %08x\n" % (piece.file, piece.offset // BLOCK, piece.crc) for _, piece in lines
        )
        with self._counting:
            if self._log < 0:
                return
            os.write(self._log, text)
        for block, piece in lines:
            self._finish(block, piece.crc)

    def _write_piece(self, piece: Piece, data: memoryview) -> int:
        """Return the number of the block that is finished by it, or -1."""
        if not (0 <= piece.file < len(self.item.files)):
            return -1
        file = self.item.files[piece.file]
        block, start = self.item.first[piece.file] + piece.offset // BLOCK, piece.offset % BLOCK
        length = min(BLOCK, file.size - piece.offset + start)
        if piece.offset + piece.length > file.size or start + piece.length > length or self._done[block]:
            return -1
        before = self._begun.pop(block, (0, 0))
        if start and before[0] != start:
            return -1  # what came before it was lost: the block is sent again
        crc = zlib.crc32(data, before[1] if start else 0)
        if crc != piece.crc:
            return -1
        self._put(file, piece.offset, data)
        with self._counting:
            self.received += len(data)
        if start + piece.length == length:
            return block
        self._begun[block] = (start + piece.length, crc)
        return -1

    def _put(self, file: File, offset: int, data: memoryview) -> None:
        small = file.size <= SMALL
        handle = open_to_write(self.places.path(file.path), os.O_CREAT if small else 0)
        try:
            while len(data):
                count = os.pwrite(handle, data, offset)
                data, offset = data[count:], offset + count
            if small:
                self._dress(handle, file)
        finally:
            os.close(handle)

    @staticmethod
    def _dress(handle: int | bytes, file: File) -> None:
        os.chmod(handle, file.mode)
        os.utime(handle, ns=(file.mtime_ns, file.mtime_ns))

    def _finish(self, block: int, crc: int) -> None:
        with self._counting:
            if not self._done[block]:
                self._done[block] = 1
                self._hashes[block] = crc
                self._left -= 1

    # -- after the data

    def publish(self) -> None:
        """Give the complete tree its modes, times and manifest, and its name.

        Raises:
            StoreError: somebody has made the destination meanwhile.
            OSError: it cannot be renamed.
        """
        self.closed = True
        for file in self.item.files:
            self._complete(file)
        with open(self.places.part_manifest, "wb") as written:
            written.write(manifest(self.item, self._hashes))
        os.unlink(self.places.log)
        for path, mode in sorted(
            self.item.directories, reverse=True
        ):  # the deepest first: a mode may close a folder
            os.chmod(self.places.path(path), mode)
        if is_foreign(self.places):
            raise StoreError(f"{shown(self.places.destination)}: {FOREIGN}")
        self._rename()
        self._close()

    def _complete(self, file: File) -> None:
        if file.size > SMALL or not file.size:  # small ones have their mode since they were written
            self._dress(self.places.path(file.path), file)

    def _rename(self) -> None:
        if self.item.is_file:  # the manifest first: without its file it says nothing
            os.replace(self.places.part_manifest, self.places.manifest)
            os.replace(self.places.part, self.places.destination)
            return
        if os.path.lexists(self.places.destination):
            os.rename(self.places.destination, self.places.old)
        os.rename(self.places.part, self.places.destination)
        remove(self.places.old)

    def abandon(self) -> None:
        """Leave the part as it is, for the next run."""
        self.closed = True
        self._close()

    def _close(self) -> None:
        with self._counting:
            if self._log >= 0:
                os.close(self._log)
            self._log = -1
        self._lock.drop()
