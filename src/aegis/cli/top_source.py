"""Where `aegis top` looks: at the registries of jobs, at one registry or gateway; all answers become one."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec

from aegis.errors import AegisError, SiteError
from aegis.fleet.concurrently import concurrently
from aegis.registry.overview.model import Overview

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aegis.registry.sources import Source, Way

THREADS: Final = 8
ANSWER_SECONDS: Final = 15.0
PATH: Final = "/overview"


def ask(source: Source[Way]) -> bytes:
    """Return what one of them answers.

    Raises:
        AegisError: it does not.
    """
    with source.open() as way:
        return way.client.request("GET", PATH)


def look(sources: Sequence[Source[Way]]) -> Overview:
    """Return what all of them tell together; those that do not answer are among its problems.

    Raises:
        SiteError: none answers.
    """

    def one(source: Source[Way]) -> Overview | str:
        try:
            with source.open() as way:
                return way.client.decode(way.client.request("GET", PATH), Overview)
        except AegisError as error:
            return error.message

    found = concurrently(one, sources, threads=THREADS, deadline=ANSWER_SECONDS)
    answers = [each for each in found if isinstance(each, Overview)]
    late = f"no answer within {ANSWER_SECONDS:g} s"
    problems = [
        each or f"{source.name}: {late}"
        for source, each in zip(sources, found, strict=True)
        if not isinstance(each, Overview)
    ]
    if not answers:
        raise SiteError("\n".join(problems) or "no registry is left: what was looked at has ended")
    if len(answers) == 1:
        return msgspec.structs.replace(answers[0], problems=(*answers[0].problems, *problems))
    from aegis.gateway.overview import merged  # noqa: PLC0415 - it loads aiohttp

    return merged(answers, tuple(problems), max(each.time for each in answers))


class Seen(NamedTuple):
    """What is known at a moment."""

    overview: Overview
    age: float  # seconds since it came
    problem: str  # why nothing has come since; empty where nothing was missed


class Follower:
    """Looks again and again in a thread of its own, between `with` and its end; the last good answer stands."""

    def __init__(self, looking: Callable[[], Overview], seconds: float, wake: Callable[[], None]) -> None:
        self._looking, self._seconds, self._wake = looking, seconds, wake
        self._state = Seen(looking(), 0.0, "")
        self._came = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="overview", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()  # a look that waits for an answer ends with the process

    def now(self) -> Seen:
        """Return what is known."""
        with self._lock:
            return self._state._replace(age=time.monotonic() - self._came)

    def _follow(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                found, problem = self._looking(), ""
            except AegisError as error:
                found, problem = None, error.message
            with self._lock:
                if found is not None:
                    self._state, self._came = Seen(found, 0.0, ""), time.monotonic()
                else:
                    self._state = self._state._replace(problem=problem)
            self._wake()
