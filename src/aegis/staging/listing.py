"""What is staged, as data: trees of files, where they go and who gets them; and the list file that says so.

The list file is read by the MPI program and by the programs on the nodes, so it has no nesting and no quoting: fields end
with a NUL byte, numbers are decimal, and each record starts with its kind.

    I source destination     an item; the records after it belong to it
    R host                   a node that needs the item; none: all nodes
    D path mode              a directory (mode in octal)
    F path size mtime_ns mode source_path    a regular file; source_path is relative to the item's source, links resolved
    L path target            a symbolic link, made as it is
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAGIC: Final = b"AEGIS-STAGE 1\0"
BLOCK: Final = 8 << 20  # bytes: of a file, hashed and resumed by these
PART: Final = ".aegis-part"  # ends the name of a destination that is not complete yet
MANIFEST: Final = (
    ".aegis-manifest"  # in a complete destination: the list's records of the item, and a C record a block
)


class Directory(Struct, frozen=True):
    """A directory of an item; its path is relative to the destination, `.` the destination itself."""

    path: str
    mode: int


class File(Struct, frozen=True):
    """A regular file of an item."""

    path: str  # relative to the destination
    size: int  # bytes
    mtime_ns: int
    mode: int
    source: str  # relative to the item's source


class Link(Struct, frozen=True):
    """A symbolic link of an item."""

    path: str
    target: str


class Item(Struct, frozen=True, kw_only=True):
    """One tree (or one file) that goes to one place on some nodes. Paths may hold any byte but NUL (surrogateescape)."""

    source: str  # absolute; a directory, or a file: then its only File has the path "."
    destination: str  # absolute, on every node
    directories: tuple[Directory, ...] = ()
    files: tuple[File, ...] = ()
    links: tuple[Link, ...] = ()
    hosts: tuple[str, ...] = ()  # that need it; (): all

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(each.size for each in self.files)


def encode(items: Iterable[Item]) -> bytes:
    """Return the list file of some items, in their order."""
    return MAGIC + b"".join(_fields(record) for item in items for record in _records(item))


def _records(item: Item) -> Iterator[Sequence[str | int]]:
    yield "I", item.source, item.destination
    for host in item.hosts:
        yield "R", host
    for directory in item.directories:
        yield "D", directory.path, f"{directory.mode:o}"
    for file in item.files:
        yield "F", file.path, file.size, file.mtime_ns, f"{file.mode:o}", file.source
    for link in item.links:
        yield "L", link.path, link.target


def _fields(record: Sequence[str | int]) -> bytes:
    return b"".join(os.fsencode(str(field)) + b"\0" for field in record)
