"""A part becomes a result: by a rename, so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from pathlib import Path

Form = Literal["tar.gz", "tar", "dir", "stdout"]
ENDINGS: Final[dict[Form, str]] = {"tar.gz": ".tar.gz", "tar": ".tar", "dir": ".out", "stdout": ".out"}
LOG: Final = ".log"
TAKEN: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR})


def publish(part: Path, final: Path) -> None:
    """Give a part its final name, in the place of what has it; it is on the disk when this returns.

    Raises:
        OSError: it cannot be done; the part stays.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.replace(final)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        # a directory, of a run that was killed before it could note it, or of another content of the input
        former = part.with_name(f"{part.name}.former")
        final.replace(former)
        part.replace(final)
        remove(former)
    _sync(final.parent)


def remove(path: Path) -> None:
    """Take away a file or a directory, if it is there."""
    with contextlib.suppress(OSError):
        path.unlink()
        return
    shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
