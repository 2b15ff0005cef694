"""The pure core of the simulated engine: step times, the batch and its queue, the prefix cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

BLOCK: Final = 16  # tokens of a KV-cache block


class Step(NamedTuple):
    """Seconds to the first token of a request, and from one token to the next."""

    ttft: float
    itl: float


# (prompt tokens, running requests) -> step time. Asked once for the first token and once for every further one.
StepTime = Callable[[int, int], Step]


def constant(ttft: float, itl: float) -> StepTime:
    """Return the same step time whatever runs."""
    step = Step(ttft, itl)
    return lambda _prompt, _running: step


def jittered(base: StepTime, relative: float, rng: Random) -> StepTime:
    """Return step times spread evenly by up to `relative` around those of `base`; the mean stays."""

    def step_time(prompt: int, running: int) -> Step:
        step = base(prompt, running)
        factor = 1 + relative * (2 * rng.random() - 1)
        return Step(step.ttft * factor, step.itl * factor)

    return step_time


class Ticket:
    """One request's place: in the queue until `running`."""

    __slots__ = ("kv_tokens", "running", "wake")

    def __init__(self, kv_tokens: int) -> None:
        self.kv_tokens = kv_tokens
        self.running = False
        self.wake: Callable[[], None] | None = None  # called when its turn comes


class Batch:
    """The running requests, bounded in number and in KV cache, and a first-in-first-out queue before them.

    The first in the queue is never overtaken, even where a smaller request behind it would fit.
    """

    def __init__(self, max_num_seqs: int, kv_cache_tokens: int) -> None:
        self.max_num_seqs = max_num_seqs
        self.kv_cache_tokens = kv_cache_tokens
        self.running = 0
        self.kv_used = 0
        self._waiting: deque[Ticket] = deque()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def can_ever_fit(self, kv_tokens: int) -> bool:
        """Tell whether an empty batch would take it."""
        return kv_tokens <= self.kv_cache_tokens

    def enter(self, kv_tokens: int) -> Ticket:
        """Take a place: in the batch if there is room and nobody waits, else in the queue.

        Raises:
            ValueError: it can never fit.
        """
        if not self.can_ever_fit(kv_tokens):
            raise ValueError(f"{kv_tokens} tokens can never fit into {self.kv_cache_tokens}")
        ticket = Ticket(kv_tokens)
        if self._waiting or not self._fits(ticket):
            self._waiting.append(ticket)
        else:
            self._start(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """Give the place up, wherever it is; return those whose turn comes now."""
        if ticket.running:
            ticket.running = False
            self.running -= 1
            self.kv_used -= ticket.kv_tokens
        else:
            self._waiting.remove(ticket)
        started: list[Ticket] = []
        while self._waiting and self._fits(self._waiting[0]):
            started.append(self._waiting.popleft())
            self._start(started[-1])
        return started

    def _fits(self, ticket: Ticket) -> bool:
        return self.running < self.max_num_seqs and self.kv_used + ticket.kv_tokens <= self.kv_cache_tokens

    def _start(self, ticket: Ticket) -> None:
        ticket.running = True
        self.running += 1
        self.kv_used += ticket.kv_tokens


class PrefixCache:
    """Which prompt prefixes were seen, in whole blocks, the least recently used forgotten first."""

    def __init__(self, tokens: int) -> None:
        self._limit = max(1, tokens // BLOCK)
        self._seen: dict[int, None] = {}  # a dictionary keeps the order of use

    def hits(self, prompt: Sequence[object]) -> int:
        """Return how many leading tokens of the prompt were cached, and remember all of it."""
        found, unbroken, chain = 0, True, 0
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            chain = hash((chain, *prompt[start : start + BLOCK]))
            unbroken = unbroken and chain in self._seen
            found += BLOCK * unbroken
            self._seen.pop(chain, None)
            self._seen[chain] = None
        while len(self._seen) > self._limit:
            del self._seen[next(iter(self._seen))]
        return found
