"""The terminal of `aegis top`: its keys one by one, its second screen, and everything as it was at the end."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
from rich.console import Console, Group
from rich.live import Live

from aegis.cli.top_keys import keys, pressed
from aegis.cli.top_view import Frame, Size, draw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from aegis.cli.top_keys import View
    from aegis.cli.top_source import Follower

TICK_SECONDS: Final = 1.0  # between two pictures where nothing comes: ages and times left go on
ENDINGS: Final = (signal.SIGTERM, signal.SIGHUP)
EXIT_SIGNAL: Final = 128


class Terminal:
    """Full screen and raw keys between `with` and its end; signals that end the process leave through it."""

    def __init__(self) -> None:
        self.console = Console()
        self._live: Live | None = None
        self._modes: list[Any] | None = None
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._woken, self._waker = os.pipe()
        self._handlers: dict[int, Any] = {}
        self._stopped = False

    def __enter__(self) -> Self:
        for end in (self._woken, self._waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        handlers = {signal.SIGWINCH: _ignore, signal.SIGTSTP: self._stop} | dict.fromkeys(ENDINGS, _leave)
        self._handlers = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def wake(self) -> None:
        """Let `read` return; any thread may call it."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    def show(self, lines: Sequence[Text]) -> None:
        """Draw a picture."""
        if self._live:
            self._live.update(Group(*lines), refresh=True)

    def read(self, seconds: float) -> list[str]:
        """Return the keys that were pressed; none when it was woken, the size has changed or the time is over."""
        watched = [self._woken] if self._keys is None else [self._woken, self._keys]
        ready, _, _ = select.select(watched, [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)
        if self._stopped:
            self._pause()
        if self._keys is None or self._keys not in ready:
            return []
        data = os.read(self._keys, 1024)
        if not data:  # the terminal has gone
            self._keys = None
        return keys(self._decoder.decode(data))

    def _open(self) -> None:
        if self._keys is not None:
            self._modes = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._live = Live(console=self.console, screen=True, auto_refresh=False)
        self._live.start()

    def _close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None
        if self._keys is not None and self._modes is not None:
            with contextlib.suppress(termios.error):  # it has gone
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._modes)

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def _pause(self) -> None:
        """Do what Ctrl-Z asks for: the shell gets its terminal as it was, and `fg` brings the picture back."""
        self._stopped = False
        self._close()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._stop)
        self._open()


def watch(terminal: Terminal, follower: Follower, title: str, view: View) -> None:
    """Draw what a follower sees, and do what keys say, until the user leaves."""
    chosen: View | None = view
    while chosen:
        seen = follower.now()
        silence = ""
        if seen.problem:
            since = time.strftime("%H:%M:%S", time.localtime(time.time() - seen.age))
            silence = f"no word since {since}: {seen.problem}"
        size = Size(terminal.console.width, terminal.console.height)
        picture = draw(seen.overview, chosen, size, Frame(title, seen.overview.time + seen.age, silence))
        terminal.show(picture.lines)
        chosen = msgspec.structs.replace(chosen, top=picture.top)
        for key in terminal.read(TICK_SECONDS):
            chosen = pressed(chosen, key, picture.page)
            if chosen is None:
                return


def _ignore(*_: object) -> None:
    """Let a signal do nothing but wake `read`."""


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(EXIT_SIGNAL + number)
