"""The pure core of a server whose steps take what a plan says: continuous batching with mixed steps."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.spec.step_times import Grid, StepTimes


class Chunk(NamedTuple):
    """Tokens of one prompt that a step prefills."""

    sequence: Sequence
    tokens: int


class Step(NamedTuple):
    """One pass through the model."""

    seconds: float
    chunks: tuple[Chunk, ...]
    decoding: tuple[Sequence, ...]


class Sequence:
    """One request in the batch."""

    __slots__ = ("each_token", "left", "length", "made", "prompt_left", "rows", "share", "wake")

    def __init__(self, *, prompt: int, cached: int = 0, output: int, rows: int = 1) -> None:
        self.prompt_left = max(1, prompt - cached)  # the last token is always computed
        self.length = prompt // rows  # tokens that attention sees in each row
        self.left = output  # tokens to come
        self.made = 0
        self.rows = rows  # answers that decode side by side
        self.share = 0.0  # of a token that was drafted and accepted
        self.wake: Callable[[], None] | None = None  # called when tokens are there:
        self.each_token = True  # each of them, or the first and the last

    def take(self, tokens: float) -> None:
        """Make tokens; a fraction is kept for the next step."""
        self.share += tokens
        whole = min(int(self.share), self.left)
        self.share -= int(self.share)
        first = not self.made
        self.made += whole
        self.left -= whole
        self.length += whole
        if self.wake and whole and (self.each_token or first or not self.left):
            self.wake()


class Group:
    """Requests that go through the model together, step by step. Decoding goes first, prompts share what is left."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._prefilling: list[Sequence] = []  # in order of arrival
        self._decoding: dict[Sequence, None] = {}  # ordered, and quick to remove from

    @property
    def requests(self) -> int:
        """Requests of this group."""
        return len(self._prefilling) + len(self._decoding)

    def add(self, sequence: Sequence) -> None:
        """Take a request."""
        self._prefilling.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let a request go, wherever it is; one that is gone is no error."""
        self._decoding.pop(sequence, None)
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)

    def step(self) -> Step | None:
        """Return the next step; None: there is nothing to do."""
        chunks: list[Chunk] = []
        room = self._times.context_tokens
        for sequence in self._prefilling:
            if not room:
                break
            chunks.append(Chunk(sequence, min(room, sequence.prompt_left)))
            room -= chunks[-1].tokens
        decoding = tuple(self._decoding)
        if not chunks and not decoding:
            return None
        rows = sum([sequence.rows for sequence in decoding])
        length = sum([sequence.length * sequence.rows for sequence in decoding]) / rows if rows else 0.0
        prefilled = self._times.context_tokens - room
        return Step(milliseconds(self._times, prefilled, rows, length) / 1000, tuple(chunks), decoding)

    def finish(self, step: Step) -> None:
        """Hand out the tokens of a step; who left while it ran gets none."""
        for sequence in step.decoding:
            if sequence in self._decoding:
                sequence.take(self._times.tokens_per_step)
                if not sequence.left:
                    del self._decoding[sequence]
        waiting = set(self._prefilling)
        for sequence, tokens in step.chunks:
            sequence.prompt_left -= tokens
            if not sequence.prompt_left and sequence in waiting:
                self._prefilling.remove(sequence)
                sequence.take(1)
                if sequence.left:
                    self._decoding[sequence] = None


def milliseconds(times: StepTimes, prefilled: int, requests: int, length: float) -> float:
    """Return how long a step takes that prefills so many tokens while so many requests of a mean length decode."""
    if not prefilled:
        return at(times.decode, requests, length)
    mixed = at(times.mixed, prefilled, requests)
    if requests:
        mixed += at(times.decode, requests, length) - at(times.decode, requests, times.decode_length)
    return max(mixed, 0.0)


def at(grid: Grid, row: float, column: float) -> float:
    """Return the value between the four nearest points, or on the straight line beyond the last ones."""
    low, part = _between(grid.rows, row)
    left, share = _between(grid.columns, column)
    first = _blend(grid.ms[low], left, share)
    return max(0.0, first + part * (_blend(grid.ms[low + 1], left, share) - first) if part else first)


def _blend(values: tuple[float, ...], index: int, share: float) -> float:
    return values[index] + share * (values[index + 1] - values[index]) if share else values[index]


def _between(keys: tuple[int, ...], value: float) -> tuple[int, float]:
    """Return the key below and how far the value lies towards the next one, in parts of their distance."""
    if len(keys) == 1:
        return 0, 0.0
    index = min(max(bisect_right(keys, value) - 1, 0), len(keys) - 2)
    return index, (value - keys[index]) / (keys[index + 1] - keys[index])
