"""What a command tells while it works: on a terminal one line that is written over, in a log one now and then."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Final, Self, TextIO

from aegis.cli.render import printable

if TYPE_CHECKING:
    from collections.abc import Callable

LOG_SECONDS: Final = 10.0  # between two lines in a log
TERMINAL_SECONDS: Final = 0.5  # between two on a terminal
THOUSAND: Final = 1000.0
MINUTE: Final = 60
HOUR: Final = 3600
DAY: Final = 86400


class Live:
    """Where the lines go; to be used with `with`, so that the terminal's line is left."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self.terminal = stream.isatty()
        self.seconds = TERMINAL_SECONDS if self.terminal else LOG_SECONDS
        self._next = 0.0 if self.terminal else clock() + LOG_SECONDS
        self._width = 0  # of the line that stands on the terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def show(self, line: str) -> None:
        """Show how far it is, if it is time to."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self.seconds
        if self.terminal:
            line = printable(line)[: shutil.get_terminal_size().columns - 1]
            self._write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._write(f"{time.strftime('%H:%M:%S')} {printable(line)}\n")

    def say(self, line: str) -> None:
        """Tell something that stays."""
        self._clear()
        self._write(printable(line) + "\n")

    def _clear(self) -> None:
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody listens any more: the work goes on


def count_text(number: float) -> str:
    """Return a number for people: `950`, `12.3k`, `4.5M`."""
    units = ("", "k", "M", "G", "T")
    size = 0
    while size < len(units) - 1 and number >= THOUSAND - 0.5:
        number, size = number / THOUSAND, size + 1
    digits = 1 if size and number < THOUSAND / 10 - 0.05 else 0
    return f"{number:.{digits}f}{units[size]}"


def clock_text(seconds: float) -> str:
    """Return a time that passes: `0:05`, `12:05`, `3:05:00`, `2d 03:05`."""
    whole = int(seconds + 0.5)
    if whole >= DAY:
        return f"{whole // DAY}d {whole // HOUR % 24:02d}:{whole // MINUTE % 60:02d}"
    minutes, rest = divmod(whole, MINUTE)
    hours, minutes = divmod(minutes, MINUTE)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
