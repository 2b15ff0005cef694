"""Staging on one machine: a clone or a hard link where the file system has them, else a copy; never half of it.

What it leaves on the disk is what the programs on the nodes leave (`node/store.py`), so any of them goes on where another
was stopped. Every byte is hashed, of clones and links too: `verify_here` has something to compare with.
"""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Struct

from aegis.errors import AegisError
from aegis.staging.listing import BLOCK, encode
from aegis.staging.node import check
from aegis.staging.node.frames import Piece
from aegis.staging.node.items import parse
from aegis.staging.node.places import (
    ADOPTED,
    FOREIGN,
    free_bytes,
    is_adopted,
    is_foreign,
    manifest,
    places_of,
    published,
    remove,
)
from aegis.staging.node.store import Store, StoreError
from aegis.staging.scan import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.staging.listing import Item
    from aegis.staging.node import items

Method = Literal["clone", "link", "copy"]
FICLONE: Final = 0x40049409  # linux/fs.h
UNIT: Final = 16  # blocks that a thread takes at once
REFUSED: Final = frozenset(
    {
        *(errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.EINVAL),
        *(errno.ENOTTY, errno.ENOSYS, errno.ETXTBSY),
    }
)


class Result(Struct, frozen=True):
    """What came of one item on this machine."""

    skipped: bool  # it was there already
    moved: int  # bytes that were read
    method: Method = "copy"


class Changed(Exception):
    """The source is not what was scanned."""


def stage_here(
    item: Item,
    tell: Callable[[int], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    *,
    threads: int = 4,
) -> Result:
    """Bring an item to its destination on this machine.

    Args:
        item: as it was scanned.
        tell: gets the bytes of each block that is finished; called from several threads.
        say: gets a line when another job is waited for.
        threads: that read, hash and write.

    Raises:
        AegisError: it cannot be; what is finished is kept for the next try, and nothing is published.
    """
    store = _Here(_parsed(item))
    where = shown(item.destination)
    try:
        os.makedirs(os.path.dirname(item.destination), exist_ok=True)
        if not store.prepare(lambda: say(f"{where}: another job stages it; waiting")):
            return Result(skipped=True, moved=0)
        needed = store.item.bytes_of(store.missing)
        try:
            _fill(store, tell, threads)
            store.publish()
        except BaseException:
            store.abandon()
            raise
        return Result(skipped=False, moved=needed, method=store.method)
    except StoreError as error:
        hint = "move it away, or use it as it is with --skip-staging" if FOREIGN in str(error) else None
        raise AegisError(str(error), hint=hint) from None
    except Changed as error:
        raise AegisError(f"{error} changed while it was staged", hint="stage it again") from None
    except OSError as error:
        raise AegisError(_told(error, where)) from None


def verify_here(item: Item) -> str:
    """Hash a destination again; return what differs from what was staged, "" when nothing does."""
    return check.verify(places_of(_parsed(item)))[1]


def clean_here(item: Item) -> bool:
    """Remove what was staged at a destination, and what is left of tries; False where nothing of ours is there.

    Raises:
        AegisError: somebody's own is there, another job stages it, or it cannot be removed.
    """
    places = places_of(_parsed(item))
    if is_adopted(places):
        return False
    own = (places.destination, places.part, places.log, places.part_manifest, places.old, places.lock)
    there = any(map(os.path.lexists, own))
    problem = check.clean(places)[1]
    if problem:
        raise AegisError(problem)
    return there


def adopt(item: Item, tell: Callable[[int], None] = lambda _: None) -> None:
    """Give a tree that lies where it is to be its manifest: it is complete, for whoever stages it to other nodes.

    Raises:
        AegisError: it cannot be read, or no manifest be written.
    """
    there = _parsed(item)
    places = places_of(there)
    try:
        if published(places):
            return
        hashes = []
        for number in range(there.blocks):
            index, offset, length = there.block(number)
            data = _read_block(there, index, offset, length)
            hashes.append(zlib.crc32(data))
            tell(length)
        with open(os.path.join(places.destination, ADOPTED), "wb"):
            pass
        temporary = places.manifest + b".%d" % os.getpid()
        with open(temporary, "wb") as stream:
            stream.write(manifest(there, hashes))
        os.replace(temporary, places.manifest)
    except Changed as error:
        raise AegisError(f"{error} changed while it was read") from None
    except OSError as error:
        raise AegisError(_told(error, item.destination)) from None


def free_space(destination: str) -> int:
    """Return the bytes that are free for a destination on this machine."""
    return free_bytes(os.fsencode(destination))[1]


# ------------------------------------------------------------------------------------------- staging


class _Here(Store):
    """An item on the machine that its source is on: files may share their content with the source's."""

    linked = True

    def __init__(self, item: items.Item) -> None:
        super().__init__(item)
        self.method: Method = "copy"
        self.shared: set[bytes] = set()  # files that are never written

    def _refuse(self) -> None:
        self.method = self._best_method()
        if self.method == "copy":
            super()._refuse()
        elif is_foreign(self.places):
            raise StoreError(f"{shown(os.fsdecode(self.places.destination))}: {FOREIGN}")

    def _best_method(self) -> Method:
        """Try with the largest file what the file system can do."""
        largest = max(self.item.files, key=lambda file: file.size, default=None)
        if largest is None or not largest.size:
            return "copy"
        source, trial = source_of(self.item, largest), self.places.destination + b".aegis-try"
        remove(trial)
        try:
            ways: tuple[Method, ...] = ("clone", "link")
            return next((way for way in ways if _share(way, source, trial)), "copy")
        finally:
            remove(trial)

    def _make_tree(self) -> None:
        for path, _ in self.item.directories:
            where = self.places.path(path)
            os.makedirs(where, 0o700, exist_ok=True)
            os.chmod(where, 0o700)
        for file in self.item.files:
            self._share(file)
        super()._make_tree()

    def _share(self, file: items.File) -> None:
        """Make a file that has the source's content, where that can be; never leave a link that would be written."""
        target, made = self.places.path(file.path), self.places.path(file.path) + b".aegis-try"
        remove(made)
        if file.size and self.method != "copy" and _share(self.method, source_of(self.item, file), made):
            if self.method == "clone":
                self._dress(made, file)
            os.replace(made, target)  # does nothing where both are the same file already
            remove(made)
            self.shared.add(file.path)
        elif os.path.isfile(target) and os.stat(target).st_nlink > 1:
            _copy_out(target, made)
            self._dress(made, file)
            os.replace(made, target)

    def _make_file(self, file: items.File) -> None:
        if file.path not in self.shared:
            super()._make_file(file)

    def _complete(self, file: items.File) -> None:
        if file.path not in self.shared:  # of a link, they are the source's, which may be newer by now
            super()._complete(file)

    def _write_piece(self, piece: Piece, data: memoryview) -> int:
        """Take a whole block, whose hash was taken from the same bytes just before."""
        self._put(self.item.files[piece.file], piece.offset, data)
        return self.item.first[piece.file] + piece.offset // BLOCK

    def _put(self, file: items.File, offset: int, data: memoryview) -> None:
        if file.path not in self.shared:
            super()._put(file, offset, data)


def _fill(store: _Here, tell: Callable[[int], None], threads: int) -> None:
    """Read, hash and write what is missing."""
    numbers = [number for start, stop in store.missing for number in range(start, stop)]
    units = [numbers[at : at + UNIT] for at in range(0, len(numbers), UNIT)]

    def unit(blocks: list[int]) -> None:
        for number in blocks:
            index, offset, length = store.item.block(number)
            data = _read_block(store.item, index, offset, length)
            store.write([Piece(index, length, offset, zlib.crc32(data))], memoryview(data))
            tell(length)

    for file in store.item.files:
        if not file.size:
            _unchanged(store.item, file, os.stat(source_of(store.item, file)))
    with ThreadPoolExecutor(threads) as pool:
        try:
            for _ in pool.map(unit, units):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if not store.complete:  # a block that was refused: memory or disk gave back other bytes than were written
        raise Changed(shown(os.fsdecode(store.item.source)))


def _read_block(item: items.Item, index: int, offset: int, length: int) -> bytes:
    """Return a block of a source file.

    Raises:
        Changed: the file is shorter, or newer, than when it was scanned.
    """
    file = item.files[index]
    with open(source_of(item, file), "rb", buffering=0) as stream:
        data = os.pread(stream.fileno(), length, offset)
        while len(data) < length and (
            more := os.pread(stream.fileno(), length - len(data), offset + len(data))
        ):
            data += more
        _unchanged(item, file, os.fstat(stream.fileno()))
    return data


def _unchanged(item: items.Item, file: items.File, now: os.stat_result) -> None:
    if (now.st_size, now.st_mtime_ns) != (file.size, file.mtime_ns):
        raise Changed(shown(os.fsdecode(source_of(item, file))))


def _share(way: Method, source: bytes, target: bytes) -> bool:
    """Make a file that shares its content with the source; False where the file system cannot."""
    try:
        if way == "clone":
            with open(source, "rb") as origin, open(target, "xb") as made:
                fcntl.ioctl(made.fileno(), FICLONE, origin.fileno())
            return True
        if os.geteuid() not in {0, os.stat(source).st_uid}:  # its owner may change it later
            return False
        os.link(os.path.realpath(source), target)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        remove(target)
        return False
    return True


def _copy_out(source: bytes, target: bytes) -> None:
    with open(source, "rb") as origin, open(target, "xb") as made:
        while count := os.copy_file_range(origin.fileno(), made.fileno(), BLOCK):
            del count


def source_of(item: items.Item, file: items.File) -> bytes:
    """Return the path that a file is read from."""
    return item.source if file.source == b"." else os.path.join(item.source, file.source)


def _parsed(item: Item) -> items.Item:
    """Return the item as the programs on the nodes see it."""
    return parse(encode([msgspec.structs.replace(item, hosts=())]))[0]


def _told(error: OSError, where: str) -> str:
    name = error.filename
    path = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
    return f"{shown(path) if path else where}: {error.strerror or error}"
