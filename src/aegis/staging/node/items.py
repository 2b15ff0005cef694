"""The list file, read: what is staged (written by `staging/listing.py`)."""

from __future__ import annotations

import bisect
from typing import NamedTuple

MAGIC = b"AEGIS-STAGE 1"
BLOCK = 8 << 20  # bytes: of a file, hashed and resumed by these
FIELDS = {b"I": 2, b"R": 1, b"D": 2, b"F": 5, b"L": 2, b"C": 3}


class ListError(Exception):
    """The list file cannot be understood."""


class File(NamedTuple):
    """A regular file of an item."""

    path: bytes  # relative to the destination
    size: int  # bytes
    mtime_ns: int
    mode: int
    source: bytes  # relative to the item's source

    @property
    def blocks(self) -> int:
        """How many blocks it has; none, if it is empty."""
        return -(-self.size // BLOCK)


class Item:
    """One tree, or one file. Its blocks are numbered through, file after file."""

    def __init__(self, index: int, source: bytes, destination: bytes) -> None:
        self.index = index
        self.source = source
        self.destination = destination
        self.hosts: list[str] = []  # that need it; none: all
        self.directories: list[tuple[bytes, int]] = []
        self.files: list[File] = []
        self.links: list[tuple[bytes, bytes]] = []
        self.records = b""  # as they are in the list, but for the hosts
        self.first: list[int] = []  # block of each file
        self.before: list[int] = []  # bytes in the files before each
        self.blocks = 0
        self.size = 0  # bytes

    @property
    def is_file(self) -> bool:
        """Whether the destination is a file, not a directory."""
        return len(self.files) == 1 and self.files[0].path == b"."

    def add(self, file: File) -> None:
        """Take one more file."""
        self.files.append(file)
        self.first.append(self.blocks)
        self.before.append(self.size)
        self.blocks += file.blocks
        self.size += file.size

    def block(self, number: int) -> tuple[int, int, int]:
        """Return the file that a block is of, its offset there and its length."""
        index = bisect.bisect_right(self.first, number) - 1  # the last of equals: empty files have no block
        offset = (number - self.first[index]) * BLOCK
        return index, offset, min(BLOCK, self.files[index].size - offset)

    def bytes_of(self, ranges: list[tuple[int, int]]) -> int:
        """Return the bytes of ranges of blocks."""
        return sum(self._bytes_before(stop) - self._bytes_before(start) for start, stop in ranges)

    def _bytes_before(self, number: int) -> int:
        if number >= self.blocks:
            return self.size
        index, offset, _ = self.block(number)
        return self.before[index] + offset


def parse(data: bytes) -> list[Item]:
    """Return the items of a list file.

    Raises:
        ListError: it is none, or it leads out of its destinations.
    """
    fields = data.split(b"\0")
    if fields[0] != MAGIC or fields.pop() != b"":
        raise ListError("not a list of what to stage, or not a whole one")
    items: list[Item] = []
    kept: list[list[bytes]] = []  # the fields of each item's records
    at = 1
    while at < len(fields):
        kind = fields[at]
        record = fields[at : at + 1 + FIELDS.get(kind, 0)]
        if kind not in FIELDS or len(record) != 1 + FIELDS[kind] or (not items and kind != b"I"):
            raise ListError(f"field {at} ({kind[:20]!r}) is no record")
        at += len(record)
        if kind == b"I":
            items.append(Item(len(items), record[1], record[2]))
            kept.append([])
        try:
            _take(items[-1], record)
        except ValueError as error:
            raise ListError(f"field {at}: {error}") from None
        if kind != b"R":
            kept[-1] += record
    for item, words in zip(items, kept):
        item.records = b"".join(word + b"\0" for word in words)
    return items


def _take(item: Item, record: list[bytes]) -> None:
    kind = record[0]
    if kind == b"I":
        if not record[2].startswith(b"/"):
            raise ValueError(f"the destination {record[2]!r} is not absolute")
    elif kind == b"R":
        item.hosts.append(record[1].decode("utf-8", "surrogateescape"))
    elif kind == b"D":
        item.directories.append((_inside(record[1]), int(record[2], 8)))
    elif kind == b"F":
        size, mtime = int(record[2]), int(record[3])
        if size < 0:
            raise ValueError(f"{record[1]!r} has {size} bytes")
        item.add(File(_inside(record[1]), size, mtime, int(record[4], 8), record[5]))
    elif kind == b"L":
        item.links.append((_inside(record[1]), record[2]))
    else:
        raise ValueError("a block's hash has no place in a list")


def _inside(path: bytes) -> bytes:
    if not path or path.startswith(b"/") or b".." in path.split(b"/"):
        raise ValueError(f"{path!r} leads out of the destination")
    return path


def short(host: str) -> str:
    """Return the name of a host without its domain; an address is itself."""
    return host if ":" in host or host.replace(".", "").isdigit() else host.partition(".")[0].lower()


def shown(path: bytes) -> str:
    """Return a path for a message: never what JSON cannot hold."""
    return path.decode("utf-8", "backslashreplace")


def reason(error: Exception) -> str:
    """Return what went wrong, with the file it is about."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    name = error.filename
    path = shown(name) if isinstance(name, bytes) else str(name or "")
    return f"{path}: {error.strerror}" if path else error.strerror
