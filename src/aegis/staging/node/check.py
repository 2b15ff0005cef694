"""What is staged on a node, hashed again; or removed."""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor

from .items import BLOCK, File, reason, shown
from .places import FOREIGN, Hashes, Lock, Places, is_foreign, published, read_hashes, remove

THREADS = 4
CHUNK = 1 << 20  # bytes


def verify(places: Places) -> tuple[int, str]:
    """Return the bytes that were read again, and what is wrong with them."""
    try:
        hashes = read_hashes(places) if published(places) else None
        if hashes is None:
            return 0, f"{shown(places.destination)}: not staged, or from another list"
        with ThreadPoolExecutor(THREADS, "hash") as pool:
            files = list(enumerate(places.item.files))
            wrong = pool.map(lambda each: _wrong(places, each[1], each[0], hashes), files)
            found = [text for text in wrong if text] + _wrong_links(places)
    except (OSError, ValueError) as error:
        return 0, reason(error)
    text = found[0] if found else ""
    return places.item.size, text + (f", and {len(found) - 1} more" if len(found) > 1 else "")


def _wrong(places: Places, file: File, index: int, hashes: Hashes) -> str:
    path = places.destination if file.path == b"." else os.path.join(places.destination, file.path)
    try:
        with open(path, "rb", buffering=0) as opened:
            size = os.fstat(opened.fileno()).st_size
            if size != file.size:
                return f"{shown(path)}: {size:,} bytes instead of {file.size:,}"
            for number in range(file.blocks):
                if hash_of(opened.fileno(), number * BLOCK) != hashes[places.item.first[index] + number]:
                    return f"{shown(path)}: block {number} is not what was staged"
    except OSError as error:
        return f"{shown(path)}: {error.strerror}"
    return ""


def hash_of(handle: int, offset: int) -> int:
    """Return the hash of the block that begins there, by reading it.

    Raises:
        OSError: it cannot be read.
    """
    buffer, crc, end = memoryview(bytearray(CHUNK)), 0, offset + BLOCK
    while offset < end:
        count = os.preadv(handle, [buffer[: min(CHUNK, end - offset)]], offset)
        if not count:
            break
        crc = zlib.crc32(buffer[:count], crc)
        offset += count
    return crc


def _wrong_links(places: Places) -> list[str]:
    found = []
    for path, target in places.item.links:
        where = os.path.join(places.destination, path)
        if not os.path.islink(where) or os.readlink(where) != target:
            found.append(f"{shown(where)}: not the link that was staged")
    return found


def clean(places: Places) -> tuple[int, str]:
    """Remove what was staged, and what is left of attempts; somebody's own stays."""
    lock = Lock(places.lock)
    try:
        if not os.path.isdir(os.path.dirname(places.destination)):
            return 0, ""
        if not lock.take(wait=False):
            return 0, f"{shown(places.destination)}: is being staged"
        foreign = is_foreign(places)
        if not foreign:
            remove(places.destination)
            remove(places.manifest)
        for leftover in (places.part, places.old, places.log, places.part_manifest):
            remove(leftover)
    except OSError as error:
        return 0, reason(error)
    finally:
        lock.drop()
    return 0, f"{shown(places.destination)}: {FOREIGN}" if foreign else ""
