"""The requests of a point: how many, which, and when."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from aegis.bench.prompts import (
    CUSTOM_OUTPUT,
    Lengths,
    Prompt,
    Tokens,
    random_prompts,
    read_custom,
    read_sharegpt,
)
from aegis.bench.work import Work, arrivals
from aegis.errors import ConfigError

if TYPE_CHECKING:
    from aegis.api.targets import Target
    from aegis.bench.sweep.document import Question

ROUNDS: Final = 10  # answers of each user that count, where nothing else is asked for
LEAST: Final = 20  # requests of a server and point
ARRIVE_SECONDS: Final = 10.0  # an open loop lasts this long,
ARRIVE_LATENCIES: Final = 6  # and so many times as long as a request
WARM_UP: Final = 0.9  # share of arrivals that count


class Loads(Struct, frozen=True, kw_only=True):
    """Makes the works of points; no random prompt comes twice to a server."""

    question: Question
    targets: tuple[Target, ...]
    tokens: Tokens = Tokens()  # that a server makes of random words
    timeout: float = 600.0  # s of one request

    def works(self, level: float, run: int, expected: float) -> list[Work]:
        """Return a work for each server.

        Args:
            level: requests at once, or requests/s, of each server.
            run: the how-manieth load of this point this is.
            expected: s that a request takes, roughly.
        """
        asked = self.question
        closed = asked.kind == "concurrency"
        users = int(level) if closed else 0
        # Those at the beginning and at the end do not count.
        count = (
            _closed(asked, users, expected) + 2 * users
            if closed
            else math.ceil(_open(asked, level, expected) / WARM_UP)
        )
        prompts = self._prompts(count, f"{level} {run}")
        return [
            self._work(
                target,
                prompts,
                concurrency=users,
                arrivals=()
                if closed
                else arrivals(count, level, asked.burstiness, self._seed(f"{level} {run} {index}")),
            )
            for index, target in enumerate(self.targets)
        ]

    def pilot(self) -> list[Work]:
        """Return one request for each server, that shows how long they take."""
        prompts = self._prompts(1, "pilot")
        return [self._work(target, prompts, concurrency=1) for target in self.targets]

    def _work(self, target: Target, prompts: tuple[Prompt, ...], **when: Any) -> Work:
        """Return the work of a server; all get the same prompts, for none sees the cache of another."""
        return Work(
            target=target,
            model=self.question.model,
            prompts=prompts,
            chat=self.question.chat,
            options={"ignore_eos": True} if self.question.dataset == "random" else {},
            seconds=self.timeout,
            **when,
        )

    def _prompts(self, count: int, label: str) -> tuple[Prompt, ...]:
        asked, seed = self.question, self._seed(label)
        if asked.dataset != "random":
            return read_prompts(asked, count, seed)
        lengths = Lengths(input=asked.input_tokens, output=asked.output_tokens)
        return random_prompts(count, lengths, self.tokens, seed)

    def _seed(self, label: str) -> int:
        return random.Random(f"{self.question.seed} {label}").getrandbits(48)  # noqa: S311 - no secret


def _closed(asked: Question, users: int, expected: float) -> int:
    """Return how many requests count."""
    if asked.requests:
        return asked.requests
    rounds = math.ceil(asked.seconds / max(expected, 1e-3)) if asked.seconds else ROUNDS
    return max(users * max(rounds, 1), LEAST)


def _open(asked: Question, rate: float, expected: float) -> int:
    if asked.requests:
        return asked.requests
    seconds = asked.seconds or max(ARRIVE_SECONDS, ARRIVE_LATENCIES * expected)
    return max(math.ceil(rate * seconds), LEAST)


def read_prompts(asked: Question, count: int, seed: int) -> tuple[Prompt, ...]:
    """Return prompts of a file in an order of their own, so that a point does not begin like the one before.

    Raises:
        ConfigError: it cannot be read, or nothing of it can be used.
    """
    file = Path(asked.path)
    if asked.dataset == "sharegpt":
        return read_sharegpt(file, count, asked.output_tokens or None, seed)
    try:
        rows = file.stat().st_size  # at most: each has a byte
    except OSError as error:
        raise ConfigError(f"--dataset-path: {asked.path!r} cannot be read: {error.strerror}") from None
    chosen = list(dict.fromkeys(read_custom(file, rows, asked.output_tokens or CUSTOM_OUTPUT)))
    random.Random(seed).shuffle(chosen)  # noqa: S311 - no secret
    return tuple(chosen[index % len(chosen)] for index in range(count))
