"""How far a run is, how fast, and when it ends."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from aegis.mapper.answers import Finished

WINDOW: Final = 60.0  # seconds that a rate looks back


class Progress(Struct, frozen=True, kw_only=True):
    """A run at a moment."""

    rows: int
    done: int  # failed ones among them
    failed: int
    in_flight: int
    instances: int
    prompt_tokens: int  # of this run, as the two below
    completion_tokens: int
    seconds: float
    rate: float | None  # rows a second, lately; None before there is one
    eta: float | None  # seconds

    @property
    def left(self) -> int:
        """Rows that are not done."""
        return self.rows - self.done


class Counts:
    """What a run has done; rows that were done before it count as done, not towards its rate."""

    def __init__(self, now: float) -> None:
        self.finished = self.prompt_tokens = self.completion_tokens = 0
        self._began = now
        self._seen: deque[tuple[float, int]] = deque([(now, 0)])

    def add(self, answer: Finished) -> None:
        """Count a row."""
        self.finished += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens

    def progress(
        self, now: float, *, rows: int, done: int, failed: int, in_flight: int, instances: int
    ) -> Progress:
        """Return how far the run is; asked now and then, it knows the latest rate."""
        self._seen.append((now, self.finished))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW:  # noqa: PLR2004 - two ends
            self._seen.popleft()
        since, before = self._seen[0]
        rate = (self.finished - before) / (now - since) if now > since and self.finished else None
        return Progress(
            rows=rows,
            done=done,
            failed=failed,
            in_flight=in_flight,
            instances=instances,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            seconds=now - self._began,
            rate=rate,
            eta=(rows - done) / rate if rate else None,
        )
