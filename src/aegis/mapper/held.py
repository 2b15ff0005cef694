"""A journal's file, held by one run: opened, locked, and the errors that its file system may give."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final

from aegis.errors import AegisError, SiteError

if TYPE_CHECKING:
    from pathlib import Path

NO_LOCKS: Final = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def open_held(path: Path, output: Path) -> int:
    """Return the descriptor of a journal, made where it is missing, with a lock that ends with it.

    Args:
        path: the journal.
        output: what it is of.

    Raises:
        SiteError: another run works on it.
        OSError: the file system refuses.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise SiteError(
            f"another run works on {output}", hint="wait for it, or name another --output"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:  # then nobody can be kept out
            os.close(file)
            raise
    return file


def write_all(file: int, data: bytes) -> None:
    """Write all of it.

    Raises:
        OSError: the file system refuses; a part may be written.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def trouble(error: OSError, path: Path, place: Path) -> AegisError:
    """Return what a user is told of an error.

    Args:
        error: of the file system.
        path: the journal.
        place: what is full, if that is it.
    """
    if error.errno in FULL:
        return full(place, error.strerror or "")
    return SiteError(f"{error.filename or path} cannot be used: {error.strerror or error}")


def full(place: Path, why: str) -> AegisError:
    """Return the error of a place without room."""
    return AegisError(
        f"{place} is full: {why}",
        hint="nothing that is done is lost: make room and run the same command to continue",
    )
