"""How far a run is, how fast, and when it ends."""

from __future__ import annotations

from collections import Counter, deque
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
    finished: int  # rows of this run, as the four below
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    rate: float | None  # rows a second, lately; None before there is one
    prompt_rate: float  # tokens a second, lately, as the next
    completion_rate: float
    eta: float | None  # seconds
    errors: dict[str, int]  # rows of this run that failed, by code
    trouble: str  # what keeps all rows from being answered; nothing where some are

    @property
    def left(self) -> int:
        """Rows that are not done."""
        return self.rows - self.done


class Counts:
    """What a run has done; rows that were done before it count as done, not towards its rate."""

    def __init__(self, now: float) -> None:
        self.finished = self.prompt_tokens = self.completion_tokens = 0
        self.errors: Counter[str] = Counter()
        self._began = now
        self._seen: deque[tuple[float, int, int, int]] = deque([(now, 0, 0, 0)])

    def add(self, answer: Finished) -> None:
        """Count a row."""
        self.finished += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        if answer.failed:
            self.errors[answer.code] += 1

    def progress(
        self,
        now: float,
        *,
        rows: int,
        done: int,
        failed: int,
        in_flight: int,
        instances: int,
        trouble: str = "",
    ) -> Progress:
        """Return how far the run is; asked now and then, it knows the latest rate."""
        self._seen.append((now, self.finished, self.prompt_tokens, self.completion_tokens))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW:  # noqa: PLR2004 - two ends
            self._seen.popleft()
        since, *before = self._seen[0]
        seconds = max(now - since, 1e-9)
        rate = (self.finished - before[0]) / seconds if now > since and self.finished else None
        return Progress(
            rows=rows,
            done=done,
            failed=failed,
            in_flight=in_flight,
            instances=instances,
            finished=self.finished,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            seconds=now - self._began,
            rate=rate,
            prompt_rate=(self.prompt_tokens - before[1]) / seconds,
            completion_rate=(self.completion_tokens - before[2]) / seconds,
            errors=dict(self.errors.most_common()),
            trouble=trouble,
            eta=(rows - done) / rate if rate else None,
        )
