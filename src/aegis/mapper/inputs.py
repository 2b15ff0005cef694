"""Inputs as people name them: files, globs, directories, lists of files. Names only: no file is looked at."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LIST: Final = "@"  # before the name of a list of files


def find_inputs(given: Iterable[str], *, leave_out: Path | None = None) -> Iterator[str]:
    """Yield the files that are meant, in the order given; those of a glob or a directory by name.

    A directory stands for the files in it, but for hidden ones and for directories; `@FILE` for the files that a list
    names, one a line, or with NUL bytes between them as `find -print0` writes.

    Args:
        given: what was named.
        leave_out: an output. It and what lies beside it for its sake are no inputs of a glob or a directory, so that
            the same command means the same files when the output is there.

    Raises:
        ConfigError: a glob or a directory has no file, or a list cannot be read.
    """
    ours = _names_of(leave_out)
    for text in given:
        if text.startswith(LIST):
            yield from _listed(text.removeprefix(LIST))
            continue
        if not glob.has_magic(text) or os.path.lexists(text):
            found = _of_directory(text) if os.path.isdir(text) else None  # noqa: PTH112 - text all the way
            if found is None:
                yield text
                continue
        else:
            found = sorted(glob.iglob(text, recursive=True))  # noqa: PTH207 - text all the way
        kept = found if ours is None else [each for each in found if not _is_ours(each, *ours)]
        if not kept:
            raise ConfigError(
                f"no file is meant by {text!r}", hint="name files, globs, directories, or @LIST"
            )
        yield from kept


def _of_directory(directory: str) -> list[str]:
    """Return its files by name; the directory tells what each entry is, so that none is asked."""
    try:
        with os.scandir(directory) as entries:
            return sorted(
                entry.path for entry in entries if not entry.name.startswith(".") and not entry.is_dir()
            )
    except OSError as error:
        raise ConfigError(f"{directory!r} cannot be read: {error.strerror}") from None


def _listed(file: str) -> Iterator[str]:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"the list {file!r} cannot be read: {error.strerror}") from None
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    names = [line for line in lines if line.strip()]
    if not names:
        raise ConfigError(f"the list {file!r} names no file")
    yield from map(os.fsdecode, names)


def _names_of(output: Path | None) -> tuple[str, str] | None:
    """Return the directory of an output, and its name."""
    return (os.path.realpath(output.parent), output.name) if output else None


def _is_ours(path: str, directory: str, name: str) -> bool:
    last = os.path.basename(path)  # noqa: PTH119 - hundreds of thousands of names
    if last not in {name, f"{name}.journal"}:
        return False
    return os.path.realpath(os.path.dirname(path) or ".") == directory  # noqa: PTH120 - as above
