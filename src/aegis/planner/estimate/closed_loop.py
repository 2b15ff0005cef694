"""Continuous batching as a discrete-event model, for all configurations of a sweep at once.

Users who each ask again as soon as they have their answer (a closed loop) share an engine. Each of its steps reads at most so many tokens
of the prompts that wait, first come first served, and gives every running request a token. Counted in steps, when a request is
read and when it ends is a matter of prompts, answers and users alone, however long the steps take. So the events are
worked out once for all workers of a question, and each multiplies them by its own times. This is held against `estimate.batching`,
which runs one configuration step by step.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis.planner.operations import Floats, Ints

    Configuration: TypeAlias = tuple[int, int]  # users, prompt tokens of a step

REQUESTS: Final = 10  # that each user sends, all users starting at once: the first ones wait for each other
LAG: Final = 1  # steps after an answer in which its user gets no token: the next request arrives within it
# Answers are up to this share shorter or longer, evenly spread: as benchmarks draw them, from 0.8 to 1 of the longest.
_SPREAD: Final = 0.1
_FOLLOWED: Final = 128  # users at least: where a batch has fewer it is run several times
MOST_USERS: Final = 2**17  # each is followed: more take minutes and gigabytes
_KINDS_KEPT: Final = 16  # of prompts and answers
_NEVER: Final = 2**36  # steps; times the tokens of the longest prompts it still is an integer


class Turns(NamedTuple):
    """What happens to requests, means; one element a configuration.

    Each user's first request is `start`; all others are those that the rest tells of.
    """

    start: Floats  # steps until its first token, all with prompts
    started: Floats  # requests that get a token in these
    waiting: Floats  # steps until its first token, after the one in which it arrives; all with prompts
    meeting: Floats  # share that arrives in a step with prompts
    idling: Floats  # share that arrives in a step without, while others get tokens
    mixing: Floats  # share of the steps after its first token that read prompts
    running: Floats  # requests that get a token in such a step
    tokens: Floats  # prompt tokens of such a step
    tokens_waited: Floats  # prompt tokens of a step of `waiting`


class Times(NamedTuple):
    """ms of the steps that `Turns` tells of."""

    start: Floats
    waited: Floats
    mixed: Floats
    decode: Floats


def ttft(of: Turns, times: Times) -> Floats:
    """Return ms to the first token, the mean over `REQUESTS` of each user."""
    later = of.waiting * times.waited + of.meeting * times.mixed + of.idling * times.decode
    return later + (of.start * times.start - later) / REQUESTS


def further(of: Turns, times: Times) -> Floats:
    """Return ms of a step after the first token."""
    return of.mixing * times.mixed + (1 - of.mixing) * times.decode


def turns(batch: Ints, chunk: Ints, *, isl: int, steps: float) -> Turns:
    """Return what happens to requests.

    Args:
        batch: users, each with one request under way; (configurations,).
        chunk: prompt tokens that a step reads at most.
        isl: tokens of a prompt.
        steps: from a request's first token to its last; rounded, at least one.

    Raises:
        ConfigError: too many users.
    """
    if batch.size and batch.max() > MOST_USERS:
        raise ConfigError(
            f"{batch.max():,} requests under way in one group, of at most {MOST_USERS:,}", hint="take fewer"
        )
    known = _known(isl, max(round(steps), 1))
    asked = list(zip(batch.tolist(), chunk.tolist(), strict=True))
    known.learn(each for each in dict.fromkeys(asked) if each not in known.found)
    columns = np.array([known.found[each] for each in asked]).reshape(-1, len(Turns._fields)).T
    return Turns(*columns)


class _Known:
    """What was worked out for one kind of prompts and answers."""

    def __init__(self, isl: int, steps: int) -> None:
        self.isl, self.steps = isl, steps
        self.found: dict[Configuration, tuple[float, ...]] = {}

    def learn(self, configurations: Iterable[Configuration]) -> None:
        """Work out configurations, those of about equally many users at once."""
        alike: dict[int, list[Configuration]] = {}
        for each in configurations:
            alike.setdefault((each[0] - 1).bit_length(), []).append(each)
        for power, members in alike.items():
            batch, chunk = np.array(members, dtype=np.int64).T
            columns = _Loop(batch, chunk, 2**power, self.isl, self.steps).run()
            self.found.update(
                zip(members, zip(*(each.tolist() for each in columns), strict=True), strict=True)
            )


_known = lru_cache(_KINDS_KEPT)(_Known)


class _Loop:
    """Configurations that run side by side: (rows, users), time in steps or in the prompt tokens that could be read by then."""

    def __init__(self, batch: Ints, chunk: Ints, width: int, isl: int, steps: int) -> None:
        self._copies = max(_FOLLOWED // width, 1)
        self._users, self._chunk = (np.repeat(each, self._copies)[:, None] for each in (batch, chunk))
        self._lag = np.where(self._users > 1, LAG, 0)  # nobody gets a token while a single user asks again
        self._isl, self._steps, self._shortest = isl, steps, max(round(steps * (1 - _SPREAD)), 1)
        self._before = isl * np.arange(width)  # tokens of the prompts ahead
        self._random = Random(0)  # noqa: S311 - no secret; the same for all, so that they differ by what they are
        # When requests may be read: steps, ascending.
        self._due = np.where(np.arange(width) < self._users, 0, _NEVER)
        self._read = np.zeros_like(self._users)  # when the last prompt was read: tokens

    def run(self) -> Turns:
        """Run until all requests are read."""
        first, now = self._serve()[:2]
        start = (first * now).sum(axis=1) / self._users[:, 0]
        sums: Ints = np.zeros((5, len(start)), dtype=np.int64)
        # Rows that are through count no more: what comes of one must not depend on its neighbours.
        while (going := sums[0] < (REQUESTS - 1) * self._users[:, 0]).any():
            sums += self._turn() * going
        rows = np.arange(0, len(start), self._copies)
        requests, waited, met, mixed, read = np.add.reduceat(sums, rows, axis=1)
        users, chunk, lag = (each[rows, 0] for each in (self._users, self._chunk, self._lag))
        met, waiting, mixed = lag * met / requests, waited / requests, mixed / requests
        # Of the steps with prompts of a turn each request misses those that it waits for.
        running = users - (waiting + met) / mixed
        read_beside = mixed * running  # steps with prompts between the first and the last token of a request
        # Of the first requests those that are read later wait longer, and meet more of the second ones.
        start = np.add.reduceat(start, rows) / self._copies
        beside_first = np.ceil(users * self._isl / chunk) - start + read_beside / 2
        mixing = (beside_first + (REQUESTS - 1) * read_beside) / (REQUESTS * self._steps)
        return Turns(
            start=start,
            started=_started(users, self._steps * chunk / self._isl),
            waiting=waiting,
            meeting=met,
            idling=lag - met,
            mixing=np.clip(mixing, 0, 1),
            running=running,
            tokens=np.minimum(self._isl / mixed, chunk),
            tokens_waited=read / waited,
        )

    def _turn(self) -> Ints:
        """Serve once more; return sums over the requests served, (5, rows): `run` names them."""
        due, before = self._due, self._read
        first, now, ends = self._serve()
        previous = np.concatenate([before, ends[:, :-1]], axis=1)
        # Those that come together arrive in the same step, before any of them is read.
        after = np.ones_like(now)
        after[:, 1:] = due[:, 1:] > due[:, :-1]
        met = np.maximum.accumulate(np.where(after, previous, 0), axis=1) > (due - 1) * self._chunk
        mixed = first - np.maximum(-(-previous // self._chunk), due)
        # Steps are full but the last one before the reader is idle.
        idle = now.copy()
        idle[:, :-1] &= due[:, 1:] >= first[:, :-1]
        until = np.where(idle, ends, np.iinfo(np.int64).max)
        until = np.minimum.accumulate(until[:, ::-1], axis=1)[:, ::-1]
        read = np.minimum(first * self._chunk, until) - due * self._chunk
        counted = now, first - due, met, mixed, read
        return np.stack([(each * now).sum(axis=1) for each in counted])

    def _serve(self) -> tuple[Ints, Ints, Ints]:
        """Read the prompts of all requests of which it is known that none comes before them.

        Return when their first tokens come (steps), which they are, and when their prompts are read (tokens).
        """
        # Who is read from now on comes back no earlier than this.
        known = np.maximum(self._due[:, :1], self._read // self._chunk) + 1 + self._shortest + self._lag
        now = self._due < known
        # Lindley's recursion: a prompt begins when it is there and those before it are read.
        begun = np.maximum(np.maximum.accumulate(self._due * self._chunk - self._before, axis=1), self._read)
        ends = begun + self._before + self._isl
        first = -(-ends // self._chunk)
        self._read = np.take_along_axis(ends, now.sum(axis=1, keepdims=True) - 1, axis=1)
        self._due = np.sort(np.where(now, first + self._answering() + self._lag, self._due), axis=1)
        return first, now, ends

    def _answering(self) -> Ints:
        """Return steps of answers, the same for each configuration."""
        width = len(self._before)
        shares = np.array([self._random.random() for _ in range(self._copies * width)]).reshape(-1, width)
        steps = np.maximum(np.rint(self._steps * (1 + _SPREAD * (2 * shares - 1))), 1).astype(np.int64)
        return np.tile(steps, (len(self._users) // self._copies, 1))


def _started(users: Ints, most: Floats) -> Floats:
    """Return the mean of requests that get a token while others wait for their first, of whom `most` run before one ends.

    One more in each unit of time until `most` run, while one fewer waits in each: the mean of those that run, weighted by those that wait.
    """
    share = np.minimum(most / users, 1)
    mean: Floats = users * (share - share**2 + share**3 / 3)
    return mean
