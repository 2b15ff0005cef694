"""The names around a destination, its lock, and how much room there is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import zlib
from typing import TYPE_CHECKING, NamedTuple

from .items import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .items import Item

Hashes = list[int]  # of the blocks in order
FOREIGN = "exists and was not staged by aegis"
ADOPTED = b".aegis-adopted"  # beside the manifest of a tree that was there before: it is not ours to replace or remove


class Places(NamedTuple):
    """Where an item is built, and where it goes."""

    item: Item
    destination: bytes
    part: bytes
    log: bytes  # of the finished blocks
    manifest: bytes  # in the destination
    part_manifest: bytes  # the same before it is published
    lock: bytes
    old: bytes  # what is replaced, until it is removed

    def path(self, name: bytes) -> bytes:
        """Return where a file of the item is built."""
        return self.part if name == b"." else os.path.join(self.part, name)


def places_of(item: Item, suffix: str = "") -> Places:
    """Return the places of an item."""
    there = item.destination.rstrip(b"/") + os.fsencode(suffix)
    part = there + b".aegis-part"
    return Places(
        item,
        there,
        part,
        part + b".blocks" if item.is_file else part + b"/.aegis-blocks",
        there + b".aegis-manifest" if item.is_file else there + b"/.aegis-manifest",
        part + b".manifest" if item.is_file else part + b"/.aegis-manifest",
        there + b".aegis-lock",
        there + b".aegis-old",
    )


class Lock:
    """Keeps others from the same destination, also those of other jobs on this node."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._handle = -1

    def take(self, *, wait: bool) -> bool:
        """Take it; False when another has it and we do not wait.

        Raises:
            OSError: its file cannot be made.
        """
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(handle)
                return False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(self.path)):
                    self._handle = handle
                    return True
            os.close(handle)  # its last holder has removed it

    def drop(self) -> None:
        """Let others have it."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.path)  # who waits for it sees that, and makes a new one
            os.close(self._handle)
            self._handle = -1


def digest_line(item: Item) -> bytes:
    """Return what the log of finished blocks begins with: which list they are of."""
    return b"%08x %d\n" % (zlib.crc32(item.records), len(item.records))


def read_log(places: Places) -> dict[int, int] | None:
    """Return the blocks that an earlier run has finished and their hashes; None when it was of another list.

    Raises:
        OSError: the log cannot be read.
    """
    try:
        with open(places.log, "rb") as file:
            lines = file.read().splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if lines[:1] != [digest_line(places.item)]:
        return None
    found: dict[int, int] = {}
    for words in (line.split() for line in lines[1:] if line.endswith(b"\n")):
        if len(words) != 3:  # noqa: PLR2004 - file, block, hash
            continue
        with contextlib.suppress(
            ValueError
        ):  # the last line of a run that was killed, and what was appended to it
            index, number, crc = int(words[0]), int(words[1]), int(words[2], 16)
            files = places.item.files
            if 0 <= index < len(files) and 0 <= number < files[index].blocks:
                found[places.item.first[index] + number] = crc
    return found


def published(places: Places) -> bool:
    """Tell whether the destination is complete, and of this very list.

    Raises:
        OSError: it cannot be read.
    """
    hashes = read_hashes(places)
    if hashes is None:
        return False
    if not places.item.is_file:
        return True
    with contextlib.suppress(FileNotFoundError):  # its manifest lies beside it, and may be older
        found, file = os.stat(places.destination), places.item.files[0]
        return (found.st_size, found.st_mtime_ns) == (file.size, file.mtime_ns)
    return False


def read_hashes(places: Places) -> Hashes | None:
    """Return the hash of every block by the manifest in the destination; None when it is not of this very list.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open(places.manifest, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    records = places.item.records
    words = data[len(records) :].split(b"\0")
    if not data.startswith(records) or len(words) != places.item.blocks * 4 + 1:
        return None
    return [int(word, 16) for word in words[3::4]]


def manifest(item: Item, hashes: Iterable[int]) -> bytes:
    """Return the manifest of a complete item, from the hashes of its blocks in order."""
    records = [item.records]
    each = iter(hashes)
    for index, file in enumerate(item.files):
        records += [b"C\0%d\0%d\0%08x\0" % (index, number, next(each)) for number in range(file.blocks)]
    return b"".join(records)


def is_foreign(places: Places) -> bool:
    """Tell whether the destination is somebody's own."""
    ours = os.path.lexists(places.manifest) and not is_adopted(places)
    return os.path.lexists(places.destination) and not ours


def is_adopted(places: Places) -> bool:
    """Tell whether the destination is somebody's own tree that was only given a manifest."""
    return os.path.lexists(os.path.join(places.destination, ADOPTED))


def open_to_write(path: bytes, flags: int = 0) -> int:
    """Open a file of a part for writing; a hard link to the source, which a local run has left, is replaced.

    Raises:
        OSError: it cannot be opened.
    """
    flags |= os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        handle = os.open(path, flags, 0o600)
    except PermissionError:  # an earlier run may have finished it, and read-only files are staged, too
        with contextlib.suppress(OSError):
            os.chmod(path, 0o600)
        handle = os.open(path, flags, 0o600)
    if os.fstat(handle).st_nlink == 1:
        return handle
    os.close(handle)
    os.unlink(path)
    return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)


def held_bytes(places: Places) -> int:
    """Return the bytes of the item for which the part already has room."""
    held = 0
    for file in places.item.files:
        with contextlib.suppress(OSError):
            found = os.lstat(places.path(file.path))
            held += min(found.st_blocks * 512, file.size)
    return held


def free_bytes(path: bytes) -> tuple[int, int, bytes]:
    """Return the device, the free bytes there and the path of the nearest parent that exists.

    Raises:
        OSError: it cannot be asked.
    """
    parent = os.path.dirname(path)
    while parent not in (b"", b"/") and not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    found = os.statvfs(parent)
    return os.stat(parent).st_dev, found.f_bavail * found.f_frsize, parent


def too_large(places: Places, need: int, free: int) -> str:
    """Return what to say where there is no room."""
    where = shown(places.destination)
    return f"{where}: needs {need:,} bytes more, but only {free:,} are free there"


def remove(path: bytes) -> None:
    """Remove a file or a tree; nothing there is as good.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(mode):
        os.unlink(path)
        return
    for folder, _, _ in os.walk(path):  # read-only folders can be staged too
        if not os.lstat(folder).st_mode & stat.S_IWUSR:
            os.chmod(folder, 0o700)
    shutil.rmtree(path)
