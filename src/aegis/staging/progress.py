"""What the programs tell while they stage, and what a person sees of it: bytes, rate, nodes done, time left."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, TextIO

from aegis.staging import events

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WINDOW: Final = 10.0  # seconds over which the rate is taken
LOG_SECONDS: Final = 10.0  # between two lines in a log
TERMINAL_SECONDS: Final = 0.2  # between two on a terminal
KIBI: Final = 1024.0


class Progress:
    """How far the staging of some items is. Knows no clock: the time is given."""

    def __init__(self, sizes: Sequence[int], hosts: Sequence[Sequence[str]]) -> None:
        """Begin.

        Args:
            sizes: bytes, per item.
            hosts: that get it, per item.
        """
        self.sizes = list(sizes)
        self.parts = [0.0] * len(self.sizes)  # of each item
        self.waiting = [set(each) for each in hosts]  # per item, nodes of which nothing is decided
        self.open = Counter(host for each in self.waiting for host in each)  # items, per node
        self.nodes = len(self.open)
        self.nodes_done = 0  # they have, or will not get, all that they need
        self.failed: set[str] = set()
        self._samples: deque[tuple[float, float]] = deque()

    def apply(self, event: events.Event, now: float) -> None:
        """Take what a program told, at a time in seconds."""
        if not isinstance(event, events.Progress | events.NodeResult) or not 0 <= event.item < len(
            self.sizes
        ):
            return
        if isinstance(event, events.Progress):
            part = event.bytes / event.total if event.total > 0 else 0.0
            self.parts[event.item] = max(self.parts[event.item], min(part, 1.0))
        elif event.host in self.waiting[event.item]:
            self._decided(event)
        self._samples.append((now, self.bytes))
        while self._samples[0][0] < now - WINDOW:
            self._samples.popleft()

    def _decided(self, event: events.NodeResult) -> None:
        self.waiting[event.item].remove(event.host)
        self.open[event.host] -= 1
        self.nodes_done += not self.open[event.host]
        if not event.ok:
            self.failed.add(event.host)
        if not self.waiting[event.item]:
            self.parts[event.item] = 1.0

    @property
    def total(self) -> int:
        """Bytes of all items."""
        return sum(self.sizes)

    @property
    def bytes(self) -> float:
        """Bytes of them that are done."""
        return sum(size * part for size, part in zip(self.sizes, self.parts, strict=True))

    @property
    def part(self) -> float:
        """How much of the whole is done, 0 to 1."""
        return self.bytes / self.total if self.total else float(self.nodes_done >= self.nodes)

    def rate(self) -> float:
        """Bytes per second, lately."""
        if len(self._samples) < 2:  # noqa: PLR2004 - a rate needs two points
            return 0.0
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def left(self) -> float | None:
        """Seconds that are left at that rate; None where nothing moves."""
        rate = self.rate()
        return (self.total - self.bytes) / rate if rate > 0 else None

    def line(self) -> str:
        """Return one line for a person."""
        left = self.left()
        done = "" if left is None or self.part >= 1 else f", {_clock(left)} left"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return (
            f"{self.status()}: {size_text(self.bytes)} of {size_text(self.total)}, {size_text(self.rate())}/s, "
            f"{self.nodes_done} of {self.nodes} nodes{failed}{done}"
        )

    def status(self) -> str:
        """Return what `aegis status` says of a job that stages."""
        return f"staging {int(100 * self.part)} %"


class Reporter:
    """Shows the progress: on a terminal one line that is written over, in a log one now and then."""

    def __init__(
        self, progress: Progress, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.progress = progress
        self.stream = stream
        self.clock = clock
        self.terminal = stream.isatty()
        self._next = 0.0 if self.terminal else clock() + LOG_SECONDS
        self._width = 0

    def __call__(self, event: events.Event) -> None:
        """Take an event, and show it if it is time."""
        now = self.clock()
        self.progress.apply(event, now)
        if now >= self._next:
            self._next = now + (TERMINAL_SECONDS if self.terminal else LOG_SECONDS)
            self._show()

    def close(self) -> None:
        """Leave the terminal's line."""
        if self.terminal and self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self.stream.flush()

    def _show(self) -> None:
        line = self.progress.line()
        if self.terminal:
            self.stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self.stream.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        self.stream.flush()


def size_text(count: float) -> str:
    """Return bytes for people: `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < KIBI:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= KIBI
    return f"{count:.1f} TiB"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
