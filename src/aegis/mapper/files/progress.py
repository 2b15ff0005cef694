"""How far a run of files is, how fast, and when it ends. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

from msgspec import Struct

WINDOW: Final = 120.0  # seconds that a rate looks back: files take longer than rows


class Progress(Struct, frozen=True, kw_only=True):
    """A run at a moment."""

    files: int
    bytes: int
    done: int  # failed ones among them
    done_bytes: int
    failed: int
    running: int
    instances: int
    resting: int  # of these, since files failed there
    rate: float | None  # bytes of input a second, lately; None before there is one
    files_rate: float | None
    eta: float | None  # seconds

    @property
    def left(self) -> int:
        """Files that have not ended."""
        return self.files - self.done


class Counts:
    """What a run has done; files of earlier runs count as done, not towards its rate."""

    def __init__(self, now: float) -> None:
        self.files = self.bytes = 0
        self._seen: deque[tuple[float, int, int]] = deque([(now, 0, 0)])

    def add(self, size: int) -> None:
        """Count a file."""
        self.files += 1
        self.bytes += size

    def rates(self, now: float) -> tuple[float, float] | None:
        """Return bytes and files a second, lately; asked now and then, it knows the latest."""
        self._seen.append((now, self.files, self.bytes))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW:  # noqa: PLR2004 - two ends
            self._seen.popleft()
        since, files, size = self._seen[0]
        if now <= since or not self.files:
            return None
        return (self.bytes - size) / (now - since), (self.files - files) / (now - since)


def left_seconds(rates: tuple[float, float] | None, size: int, files: int) -> float | None:
    """Return how long what is left takes: by its bytes, or by its number where no file has any."""
    if rates is None:
        return None
    if rates[0] and size:
        return size / rates[0]
    return files / rates[1] if rates[1] else None
