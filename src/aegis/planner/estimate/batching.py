"""Continuous batching, step by step: what an aggregated plan is held against.

One engine, and users who each ask again as soon as they have their answer (a closed loop). Every step gives each running
request a token and reads at most `context_tokens` of the prompts that wait, first come first served.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from aegis.planner.arrays import distinct

if TYPE_CHECKING:
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.operations import Floats
    from aegis.planner.problem import Load

_CHUNKS, _LENGTHS = 8, 5  # points of the tables that steps are read from


class StepTimes(Protocol):
    """How long a step takes."""

    def mixed(self, chunk: int, requests: int) -> float:
        """Return ms of a step that reads `chunk` prompt tokens and gives `requests` a token each."""

    def decode(self, requests: int, length: float) -> float:
        """Return ms of a step of `requests`, on average `length` tokens long."""


class Engine(NamedTuple):
    """What is simulated."""

    users: int  # requests under way, and the largest batch
    context_tokens: int  # prompt tokens of a step
    chunked: bool = True  # prompts are cut to fill a step
    turnaround: float = 0.0  # ms from an answer's last token until the user's next request has arrived
    spread: float = 0.0  # answers are this much shorter or longer, evenly spread
    progress: float = 1.0  # tokens of a decode step
    requests: int = 10  # of each user; all users start at once
    warm_up: int = 0  # of these, that are not counted
    seed: int = 0


class Observed(NamedTuple):
    """Means over the requests that are counted; ms."""

    ttft: float
    tpot: float
    requests_per_s: float
    mixed_share: float  # of all steps


class TabulatedTimes:
    """Step times of a worker, from one vectorised pass."""

    def __init__(self, worker: Worker, load: Load, *, users: int, context_tokens: int) -> None:
        requests = np.arange(users + 1)
        chunks = np.arange(load.isl, context_tokens + 1, load.isl)  # whole prompts
        if context_tokens % load.isl:
            parts = np.linspace(context_tokens / _CHUNKS, context_tokens, _CHUNKS).astype(np.int64)
            chunks = distinct(np.concatenate([chunks, parts]))
        lengths = distinct(np.linspace(load.isl + 1, load.isl + load.osl, _LENGTHS).astype(np.int64))
        self._mixed = _Lines(chunks, worker.mixed(chunks, requests[:, None], load))
        self._decode = _Lines(lengths, worker.decode(np.maximum(requests, 1)[:, None], lengths))

    def mixed(self, chunk: int, requests: int) -> float:
        """Return ms of a step that reads `chunk` prompt tokens and gives `requests` a token each."""
        return self._mixed(requests, chunk)

    def decode(self, requests: int, length: float) -> float:
        """Return ms of a step of `requests`, on average `length` tokens long."""
        return self._decode(requests, length)


class _Lines:
    """Rows of values over the same points, read between them by straight lines."""

    def __init__(self, points: np.ndarray, rows: Floats) -> None:
        self._points = points.tolist()
        self._rows = np.broadcast_to(rows, (len(rows), len(points))).tolist()

    def __call__(self, row: int, at: float) -> float:
        points, values = self._points, self._rows[row]
        if len(points) == 1:
            return float(values[0])
        right = 1
        while right < len(points) - 1 and points[right] < at:
            right += 1
        share = (at - points[right - 1]) / (points[right] - points[right - 1])
        return float(values[right - 1] + share * (values[right] - values[right - 1]))


class _Request:
    __slots__ = ("arrived", "first", "left", "steps")

    def __init__(self, arrived: float, left: int, steps: int) -> None:
        self.arrived = arrived
        self.left = left  # prompt tokens that are not read yet
        self.steps = steps  # decode steps until it is answered
        self.first = math.nan  # when its first token came


class Simulation:
    """A run of one engine."""

    def __init__(self, engine: Engine, times: StepTimes, load: Load) -> None:
        self.engine, self.times, self.load = engine, times, load
        self.now, self.step, self.mixed_steps = 0.0, 0, 0
        self._random = Random(engine.seed)  # noqa: S311 - no secret
        self._coming: list[float] = [0.0] * engine.users  # a heap of arrivals
        self._waiting: deque[_Request] = deque()
        self._ends: list[tuple[int, int, _Request]] = []  # a heap: last step, serial
        self._started = 0  # sum of the first steps of the running requests: their mean length follows
        self._ended: list[tuple[float, float]] = []  # ttft, tpot

    def run(self) -> Observed:
        """Run until all requests are answered, and return the means of those that are counted."""
        total = self.engine.users * self.engine.requests
        while len(self._ended) < total:
            self._arrive()
            chunk, read = self._read()
            if chunk or self._ends:
                self._advance(chunk, read)
            else:
                self.now = max(self.now, self._coming[0])
        counted = self._ended[self.engine.users * self.engine.warm_up :]
        ttft, tpot = fmean(each[0] for each in counted), fmean(each[1] for each in counted)
        cycle = ttft + tpot * (self.load.osl - 1) + self.engine.turnaround
        # Little's law: what users who never pause get is what the engine serves.
        return Observed(ttft, tpot, 1000 * self.engine.users / cycle, self.mixed_steps / self.step)

    def _arrive(self) -> None:
        while self._coming and self._coming[0] <= self.now:
            shift = self.engine.spread * (2 * self._random.random() - 1)
            tokens = max(round((self.load.osl - 1) * (1 + shift)), 1)
            steps = math.ceil(tokens / self.engine.progress)
            self._waiting.append(_Request(heappop(self._coming), self.load.isl, steps))

    def _read(self) -> tuple[int, list[_Request]]:
        """Fill a step with prompt tokens; return how many, and whose prompt ends in it."""
        budget, read = self.engine.context_tokens, list[_Request]()
        while self._waiting and budget:
            request = self._waiting[0]
            if not self.engine.chunked and self.engine.context_tokens > budget < request.left:
                break
            taken = min(budget, request.left)
            request.left -= taken
            budget -= taken
            if not request.left:
                read.append(self._waiting.popleft())
        return self.engine.context_tokens - budget, read

    def _advance(self, chunk: int, read: list[_Request]) -> None:
        running = len(self._ends)
        if chunk:
            self.now += self.times.mixed(chunk, running)
            self.mixed_steps += 1
        else:
            age = self.step - self._started / running
            self.now += self.times.decode(running, self.load.isl + 1 + age * self.engine.progress)
        self.step += 1
        while self._ends and self._ends[0][0] <= self.step:
            self._end(heappop(self._ends)[2])
        for request in read:
            request.first = self.now
            self._started += self.step
            heappush(self._ends, (self.step + request.steps, id(request), request))

    def _end(self, request: _Request) -> None:
        self._started -= self.step - request.steps
        tokens = request.steps * self.engine.progress
        self._ended.append((request.first - request.arrived, (self.now - request.first) / tokens))
        heappush(self._coming, self.now + self.engine.turnaround)


def simulate(engine: Engine, times: StepTimes, load: Load) -> Observed:
    """Return what users see of an engine."""
    return Simulation(engine, times, load).run()
