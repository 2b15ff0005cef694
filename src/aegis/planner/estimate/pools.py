"""Disaggregated serving, event by event: what the formulas of waiting are held against.

Users who each ask again as soon as they have their answer; one queue before all prefill workers, decode workers that
take a request at once and share their time among the requests they hold.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Pools(NamedTuple):
    """What is simulated; ms."""

    users: int
    prefill_workers: int
    prefill: float  # time of one prompt
    transfer: float  # of its KV cache
    steps: Sequence[float]  # a decode step by the number of requests that the worker holds, from 0 on
    decode_workers: int
    tokens: int  # of an answer, after the first one
    spread: float = 0.1  # answers are this much shorter or longer, evenly spread
    requests: int = 12  # of each user; all users start at once
    warm_up: int = 4  # of these, that are not counted
    seed: int = 0


class Seen(NamedTuple):
    """Means over the requests that are counted; ms."""

    ttft: float
    tpot: float
    requests_per_s: float


class _Request(NamedTuple):
    user: int
    arrived: float
    started: float  # with its first token
    tokens: float


class _Decoder:
    """A decode worker: `age` counts the steps it has done."""

    def __init__(self, steps: Sequence[float]) -> None:
        self._steps = steps
        self._age, self._at = 0.0, 0.0
        self._ends: list[tuple[float, _Request]] = []  # by the age at which they end

    def __len__(self) -> int:
        return len(self._ends)

    def _pace(self) -> float:
        return self._steps[min(len(self._ends), len(self._steps) - 1)]

    def _advance(self, now: float) -> None:
        if self._ends:
            self._age += (now - self._at) / self._pace()
        self._at = now

    def next_end(self) -> float:
        """Return when its next request ends."""
        return self._at + (self._ends[0][0] - self._age) * self._pace()

    def add(self, now: float, request: _Request) -> None:
        """Take a request."""
        self._advance(now)
        heappush(self._ends, (self._age + request.tokens, request))

    def end(self, now: float) -> _Request:
        """Return the request that ends now."""
        self._advance(now)
        return heappop(self._ends)[1]


def simulate_pools(pools: Pools) -> Seen:
    """Return what users see in the steady state."""
    random = Random(pools.seed)  # noqa: S311 - no secret
    waiting = deque((0.0, user) for user in range(pools.users))
    free = pools.prefill_workers
    coming: list[
        tuple[float, int, float, int]
    ] = []  # when, decoder (-1: a prefill worker is free), arrival, user
    decoders = [_Decoder(pools.steps) for _ in range(pools.decode_workers)]
    ended: list[tuple[float, float]] = []
    now = 0.0
    while len(ended) < pools.users * pools.requests:
        while free and waiting:
            arrived, user = waiting.popleft()
            free -= 1
            heappush(coming, (now + pools.prefill, -1, arrived, user))
        ends = [(decoder.next_end(), index) for index, decoder in enumerate(decoders) if len(decoder)]
        heapify(ends)
        if ends and (not coming or ends[0][0] <= coming[0][0]):
            now, index = ends[0]
            request = decoders[index].end(now)
            ended.append((request.started - request.arrived, (now - request.started) / request.tokens))
            waiting.append((now, request.user))
            continue
        now, where, arrived, user = heappop(coming)
        if where < 0:
            free += 1
            heappush(coming, (now + pools.transfer, user % pools.decode_workers, arrived, user))
        else:
            tokens = pools.tokens * (1 + pools.spread * (2 * random.random() - 1))
            decoders[where].add(now, _Request(user, arrived, now, tokens))
    counted = ended[pools.users * pools.warm_up :]
    ttft, tpot = fmean(each[0] for each in counted), fmean(each[1] for each in counted)
    return Seen(ttft, tpot, 1000 * pools.users / (ttft + tpot * pools.tokens))
