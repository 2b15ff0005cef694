"""The files to work on: each looked at once, named relative to what they have in common, the biggest first."""

from __future__ import annotations

import os
import stat
from array import array
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

AT_ONCE: Final = 32  # looks at a shared file system: one alone waits for its servers most of the time
BATCH: Final = 256
SHOWN: Final = 20  # problems that are told at once

Looked = tuple[str, int, int]  # path, bytes, time of the last change in ns; -1: it cannot be looked at


class Entry(NamedTuple):
    """One input, as it is now."""

    name: str  # relative to the base
    size: int  # bytes
    changed: int  # ns since the epoch


class Inputs:
    """Inputs in the order in which they are begun; a position is a place in this order.

    A few hundred thousand of them are a few tens of megabytes.
    """

    def __init__(self, base: str, entries: list[Entry]) -> None:
        entries.sort(key=lambda each: (-each.size, each.name))
        self.base = base
        self.names = [each.name for each in entries]
        self.sizes = array("q", (each.size for each in entries))
        self.changed = array("q", (each.changed for each in entries))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> Entry:
        return Entry(self.names[position], self.sizes[position], self.changed[position])

    def path(self, position: int) -> str:
        """Return the absolute path of an input."""
        return os.path.join(self.base, self.names[position])  # noqa: PTH118 - text, hundreds of thousands


def look(paths: Iterable[Path], outside: str) -> list[Looked]:
    """Look at every input once; what lies in `outside` (the output directory) is none.

    Raises:
        ConfigError: some are no files or cannot be read, the first of them are listed; or there are none.
    """
    found: dict[str, Looked] = {}
    problems: list[str] = []
    inside = outside.rstrip("/") + "/"
    for path, size, changed in _stats(paths):
        if path.startswith(inside):
            continue
        if size < 0:
            problems.append(f"{path!r}{': ' + os.strerror(changed) if changed else ' is no file'}")
            if len(problems) == SHOWN:
                break
        found[path] = (path, size, changed)
    if problems:
        more = f"the first {SHOWN} are shown" if len(problems) == SHOWN else None
        raise ConfigError("\n".join(f"input {each}" for each in problems), hint=more)
    if not found:
        raise ConfigError("there are no inputs", hint="name files, directories or globs")
    return list(found.values())


def common_base(looked: list[Looked]) -> str:
    """Return the longest directory that holds all of them."""
    first, last = min(each[0] for each in looked), max(each[0] for each in looked)
    return os.path.commonpath([os.path.dirname(first), os.path.dirname(last)])  # noqa: PTH120 - text


def named(looked: list[Looked], base: str, endings: tuple[str, ...], output: str) -> Iterator[Entry]:
    """Yield the inputs by their names relative to a base.

    Args:
        looked: what `look` returned.
        base: as of the first run.
        endings: what results and logs have after their input's name.
        output: the directory of the results, for messages.

    Raises:
        ConfigError: one lies elsewhere, or the results of two would get in each other's way.
    """
    inside = base.rstrip("/") + "/"
    names = set()
    for path, size, changed in looked:
        if not path.startswith(inside):
            raise ConfigError(
                f"{path!r} does not lie below {base!r}, which the results in {output!r} are named after",
                hint="send it to another directory with --output",
            )
        names.add(path[len(inside) :])
        yield Entry(path[len(inside) :], size, changed)
    folders = {name.rpartition("/")[0] for name in names}
    folders |= {above for folder in folders for above in _above(folder)}
    for folder in folders:
        ending = next((each for each in endings if folder.endswith(each)), "")
        if ending and folder.removesuffix(ending) in names:
            raise ConfigError(
                f"the result of {folder.removesuffix(ending)!r} would be where those below {folder!r} go",
                hint="send one of them to another directory with --output",
            )


def _above(folder: str) -> Iterator[str]:
    while folder := folder.rpartition("/")[0]:
        yield folder


def _stats(paths: Iterable[Path]) -> Iterator[Looked]:
    rest = iter(paths)
    waiting: deque[Future[list[Looked]]] = deque()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while batch := list(islice(rest, BATCH)):
            waiting.append(pool.submit(_look_at, batch))
            if len(waiting) > AT_ONCE:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _look_at(batch: list[Path]) -> list[Looked]:
    found = []
    for each in batch:
        path = os.path.abspath(each)  # noqa: PTH100 - links stay as the user wrote them
        try:
            told = os.stat(path)  # noqa: PTH116 - text
        except OSError as error:
            found.append((path, -1, error.errno or 0))
            continue
        regular = stat.S_ISREG(told.st_mode)
        found.append((path, told.st_size, told.st_mtime_ns) if regular else (path, -1, 0))
    return found
