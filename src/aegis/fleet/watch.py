"""One watcher per scheduler for all processes of a user: what one asks, all know.

The scheduler's answers lie in a file, under a lock. Who finds them too old asks once, for every job that anybody here wants
to know of; the others read. So a hundred waiting processes cost the scheduler the questions of one. A scheduler that does
not answer leaves its last words standing: they grow old, and are never changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from aegis.decoding import from_json
from aegis.errors import SiteError
from aegis.files import PRIVATE, write_atomically
from aegis.runs import ENDED
from aegis.schedulers.base import JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path


class Policy(Struct, frozen=True, kw_only=True):
    """How often who asks, in seconds."""

    first: float = 2.0  # between a waiter's first questions, and after a change
    factor: float = 1.5
    longest: float = 30.0
    retry: float = 5.0  # after a failure nobody asks for so long
    patience: float = 2.0  # for the lock, where an old answer is at hand
    first_patience: float = 75.0  # where there is none
    wanted: float = 600.0  # who asked for a job so lately is asked for again
    memory: float = 7 * 86400.0  # older answers are forgotten
    tick: float = 0.3  # between a waiter's looks at a job's files
    far_tick: float = 2.0  # the same through ssh


class Gaps:
    """The growing pauses of one waiter."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._next = policy.first

    def next(self, *, changed: bool) -> float:
        """Return how long to wait before asking again."""
        if changed:
            self._next = self._policy.first
        gap = self._next
        self._next = min(gap * self._policy.factor, self._policy.longest)
        return gap


# ------------------------------------------------------------------------------------ what is remembered; pure


class Answer(Struct, frozen=True):
    """What a scheduler said of one job."""

    time: float  # epoch seconds at which it was asked
    status: JobStatus | None  # None: it knows no such job
    wanted: float  # when somebody asked for it last


class Memory(Struct, frozen=True):
    """Everything that a scheduler said lately, and how the last attempt to ask went."""

    answers: dict[str, Answer] = {}
    failed: float = 0.0  # when it last did not answer; 0 after an answer
    problem: str = ""

    def satisfies(self, handles: Collection[str], since: float, now: float) -> bool:
        """Tell whether all the jobs have an answer from `since` on; one from a clock that is ahead does not count."""
        found = (self.answers.get(handle) for handle in handles)
        return all(answer is not None and since <= answer.time <= now for answer in found)

    def to_ask(self, handles: Collection[str], live: Iterable[str], now: float, policy: Policy) -> list[str]:
        """Return the jobs to ask for: those wanted now, those that others wanted lately, and all that live."""
        others = {
            handle
            for handle, answer in self.answers.items()
            if now - answer.wanted < policy.wanted and not _has_ended(answer)
        }
        return sorted({*handles, *others, *live})

    def learn(
        self,
        asked: Sequence[str],
        found: Mapping[str, JobStatus],
        handles: Collection[str],
        now: float,
        policy: Policy,
    ) -> Memory:
        """Return the memory after an answer."""
        answers = {
            handle: answer
            for handle, answer in self.answers.items()
            if now - max(answer.time, answer.wanted) < policy.memory
        }
        for handle in asked:
            before = answers.get(handle)
            wanted = now if handle in handles or before is None else before.wanted
            answers[handle] = Answer(now, found.get(handle), wanted)
        return Memory(answers)

    def fail(self, problem: str, now: float) -> Memory:
        """Return the memory after a failure: nothing that is known changes."""
        return Memory(self.answers, now, problem)

    def tell(self, handles: Collection[str], now: float) -> dict[str, JobStatus]:
        """Return what is known of some jobs, with its age; a job that the scheduler does not know is left out."""
        told = {}
        for handle in handles:
            answer = self.answers.get(handle)
            if answer is None:
                told[handle] = JobStatus(state="UNKNOWN", reason=self.problem)
            elif answer.status is not None:
                age = max(0.0, now - answer.time)
                told[handle] = msgspec.structs.replace(answer.status, age=age)
        return told


def _has_ended(answer: Answer) -> bool:
    return answer.status is not None and answer.status.state in ENDED


# ------------------------------------------------------------------------------------------------ who asks


class Watcher:
    """The way to one scheduler.

    Args:
        query: asks it; raises SiteError where it does not answer.
        file: keeps its answers.
        live: returns the user's jobs that have not ended, as far as is known without asking.
    """

    def __init__(
        self,
        query: Callable[[list[str]], Mapping[str, JobStatus]],
        file: Path,
        live: Callable[[], Iterable[str]],
        policy: Policy,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._query = query
        self._file = file
        self._live = live
        self._policy = policy
        self._clock = clock
        self.problem = ""  # why the scheduler does not answer at present

    def states(self, handles: Collection[str], max_age: float = 0.0) -> dict[str, JobStatus]:
        """Return the state of each job by an answer that is at most so old, or by the last one that there is."""
        began = self._clock()
        memory = self._read()
        if not self._will_do(memory, handles, began - max_age):
            known = all(handle in memory.answers for handle in handles)
            with self._lock(self._policy.patience if known else self._policy.first_patience) as mine:
                memory = self._read()
                if mine and not self._will_do(memory, handles, began - max_age):
                    memory = self._ask(memory, handles)
        now = self._clock()
        self.problem = "" if memory.satisfies(handles, began - max_age, now) else memory.problem
        return memory.tell(handles, now)

    def _will_do(self, memory: Memory, handles: Collection[str], since: float) -> bool:
        """Tell whether there is no use in asking: it is known, or nobody answered just now."""
        now = self._clock()
        just_failed = bool(memory.failed) and 0 <= now - memory.failed < self._policy.retry
        return just_failed or memory.satisfies(handles, since, now)

    def _ask(self, memory: Memory, handles: Collection[str]) -> Memory:
        began = self._clock()
        try:
            asked = memory.to_ask(handles, self._live(), began, self._policy)
            found = self._query(asked)
        except SiteError as error:
            memory = memory.fail(error.message, self._clock())
        else:
            memory = memory.learn(asked, found, handles, began, self._policy)
        with contextlib.suppress(OSError):  # not shared, then
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, msgspec.json.encode(memory), PRIVATE)
        return memory

    def _read(self) -> Memory:
        try:
            return from_json(self._file.read_bytes(), Memory)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return Memory()

    @contextlib.contextmanager
    def _lock(self, patience: float) -> Iterator[bool]:
        """Yield whether the lock was got; where a file system has no locks, everybody asks for himself."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        except OSError:
            yield True
            return
        try:
            yield _acquire(handle, time.monotonic() + patience)
        finally:
            os.close(handle)


def _acquire(handle: int, deadline: float) -> bool:
    pause = 0.01
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(pause * 1.5, 0.2)
        except OSError:
            return True
        else:
            return True
