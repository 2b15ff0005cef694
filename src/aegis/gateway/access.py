"""The access log: a JSON line for every request; who, what, where, how long, never the words."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import stat
import sys
import time
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from aegis.errors import ConfigError
from aegis.files import PRIVATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOK_SECONDS: Final = 1.0  # between two looks at whether the file was moved away
LONGEST: Final = 256  # characters of what a client chose: a line must fit into a pipe at once, 4096 bytes
DIGITS: Final = 6  # of seconds
log = logging.getLogger(__name__)


class Entry(Struct, frozen=True, kw_only=True):
    """One request; its keys are the keys of the line."""

    time: float  # epoch seconds when it came
    key: str = ""  # the name of the key, never the key
    client: str = ""  # address
    method: str
    path: str  # what follows `?` is left out
    model: str = ""
    instance: str = ""
    status: int  # 499: the client left before an answer began
    seconds: float
    first_byte_seconds: float | None = None
    bytes_in: int = 0  # of the body
    bytes_out: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retries: int = 0
    cancelled: bool = False  # by the client


_encoder = msgspec.json.Encoder()


def line(entry: Entry) -> bytes:
    """Return the line of a request, with its end."""
    first = entry.first_byte_seconds
    shown = msgspec.structs.replace(
        entry,
        time=round(entry.time, DIGITS),
        path=_clean(entry.path.partition("?")[0]),
        model=_clean(entry.model),
        seconds=round(entry.seconds, DIGITS),
        first_byte_seconds=None if first is None else round(first, DIGITS),
    )
    return _encoder.encode(shown) + b"\n"


def _clean(text: str) -> str:
    """Return what may stand in a line: no endless text, no characters that have no UTF-8."""
    text = text[:LONGEST]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class AccessLog:
    """Where the lines go. Nothing that happens there stops a request; it is told once, and again after it was well."""

    def __init__(
        self,
        file: Path | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        warn: Callable[[str], object] = log.warning,
    ) -> None:
        """Open a file, made readable for its owner only; `-` is standard output, None standard error.

        Raises:
            ConfigError: it cannot be opened.
        """
        self.lost = 0  # lines
        self._file = file if file is not None and str(file) != "-" else None
        self._clock, self._warn = clock, warn
        self._told: set[str] = set()  # troubles that have not ended
        self._torn = False
        self._looked = clock()
        try:
            self._handle = (
                self._open() if self._file else (sys.stderr if file is None else sys.stdout).fileno()
            )
            status = os.fstat(self._handle)
        except (OSError, ValueError, AttributeError) as error:  # the latter two: a stream that was closed
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"the access log {str(file)!r} cannot be written: {reason}") from None
        self._identity = (status.st_dev, status.st_ino)
        self._poll: select.poll | None = None
        if not stat.S_ISREG(status.st_mode):  # a pipe that nobody empties is not waited for
            self._poll = select.poll()
            self._poll.register(self._handle, select.POLLOUT)

    def write(self, entry: Entry) -> None:
        """Append the line of a request."""
        now = self._clock()
        if self._file and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._follow()
        data = b"\n" + line(entry) if self._torn else line(entry)
        try:
            if self._poll is not None and not self._poll.poll(0):
                raise BlockingIOError("nobody reads it")
            self._torn = os.write(self._handle, data) < len(data)
        except OSError as error:
            self.lost += 1
            self._tell("write", f"lines are lost: {error.strerror or error}")
            return
        self.lost += self._torn
        self._told.discard("write")

    def reopen(self) -> None:
        """Open the file anew, as after a rotation (SIGHUP); the old one goes on where that fails."""
        if not self._file:
            return
        try:
            fresh = self._open()
        except OSError as error:
            self._tell("open", f"{str(self._file)!r} cannot be opened again: {error.strerror}")
            return
        os.close(self._handle)
        self._handle, self._torn = fresh, False
        status = os.fstat(fresh)
        self._identity = (status.st_dev, status.st_ino)
        self._told.discard("open")

    def close(self) -> None:
        """Close the file."""
        if self._file:
            with contextlib.suppress(OSError):
                os.close(self._handle)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        return os.open(str(self._file), flags, PRIVATE)

    def _tell(self, trouble: str, message: str) -> None:
        if trouble not in self._told:
            self._told.add(trouble)
            self._warn(f"access log: {message}")

    def _follow(self) -> None:
        """Reopen a file that has been moved away or deleted."""
        try:
            status = os.stat(str(self._file))  # noqa: PTH116 - once a second, beside requests
            moved = (status.st_dev, status.st_ino) != self._identity
        except OSError:
            moved = True
        if moved:
            self.reopen()
