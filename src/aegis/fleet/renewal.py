"""A service that outlives its jobs: each gets the next one into the queue while it serves, and sees that it stays there."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from aegis.errors import AegisError
from aegis.fleet.request import SHORTEST
from aegis.runs import ENDED
from aegis.schedulers.base import After
from aegis.spec.walltime import format_walltime

if TYPE_CHECKING:
    from aegis.runs import JobState

QUEUE_SECONDS: Final = (
    7200.0  # for the successor to wait in; it costs nothing, for who is handed over from ends
)
STARTUPS: Final = 3  # times the start-up that was seen: the next one may find colder disks
STARTS: Final = 3  # in a row that may fail, before the service is given up
SETTLED_SECONDS: Final = 300.0  # a job that failed sooner after it was ready counts as a failed start
LOOK_SECONDS: Final = 60.0  # between looks at a successor that waits
RETRY_SECONDS: Final = (30.0, 600.0)  # the first and the longest pause after a submission that failed
LONG_SECONDS: Final = 3600.0
JOIN_SECONDS: Final = 20.0  # for a submission that is under way; whoever ends a job waits longer


class Terms(Struct, frozen=True, kw_only=True):
    """The times of one job of a service, in seconds; moments in epoch seconds."""

    began: float
    walltime: float
    startup: float = 0.0  # from its beginning to its servers' health
    until: float | None = None  # when the service ends
    overlap: float | None = None  # as it was asked for

    @property
    def lead(self) -> float:
        """How long before its end the next one may start."""
        usual = min(self.walltime / 2, max(QUEUE_SECONDS, STARTUPS * self.startup))
        return usual if self.overlap is None else min(self.overlap, self.walltime)

    @property
    def due(self) -> float:
        """When the next one may start."""
        return self.began + self.walltime - self.lead

    def after(self, job: str) -> After:
        """Return when the successor of this job may start, as schedulers are told."""
        return After(job=job, seconds=max(0, int(self.due - self.began)), time=self.due)

    @property
    def is_last(self) -> bool:
        """Whether the service ends with this job."""
        return self.until is not None and self.began + self.walltime > self.until - SHORTEST


class Fate(Struct, frozen=True):
    """What is known of a successor."""

    state: JobState
    reason: str = ""
    served: bool = False
    successor: str | None = None  # that it has submitted in its own place


class Queue(Protocol):
    """Where successors wait."""

    @property
    def is_here(self) -> bool:
        """Whether jobs can be submitted from this machine."""
        ...

    @property
    def absence(self) -> str:
        """What to do where they cannot."""
        ...

    def waiting(self) -> str | None:
        """Return the successor that this job has, whoever submitted it."""
        ...

    def submit(self, after: After) -> str:
        """Submit one and return its handle.

        Raises:
            AegisError: it is refused, or nobody answers.
        """
        ...

    def fate(self, handle: str) -> Fate | None:
        """Return what became of one; None where that cannot be said at present."""
        ...

    def cancel(self, handle: str) -> None:
        """Cancel one that has not begun.

        Raises:
            AegisError: it cannot be.
        """
        ...


class Renewal:
    """Sees to it that a job of a service has a successor; in a thread, for schedulers may be slow to answer.

    Args:
        job: the handle of this job.
        line: where successors wait.
        own_timer: nobody but this process waits until a successor is due.
        failed_starts: successors in a row that failed at their start, this job not among them.
        successor: that this job has already.
        look: seconds between looks at it.
    """

    def __init__(
        self,
        job: str,
        line: Queue,
        *,
        own_timer: bool,
        failed_starts: int = 0,
        successor: str | None = None,
        look: float = LOOK_SECONDS,
    ) -> None:
        self.job, self.successor, self.problem = job, successor, ""
        self.failed_starts = failed_starts
        self._line, self._own_timer, self._look_seconds = line, own_timer, look
        self._terms = Terms(began=0.0, walltime=0.0)
        self._refusals = 0
        self._at_once = False  # the last one failed: the next is not to wait for its time
        self._given_up = False
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, terms: Terms) -> None:
        """Serve from now on, on these terms: whatever failed before is forgiven."""
        self._terms, self.failed_starts = terms, 0
        self._thread = threading.Thread(target=self._run, daemon=True, name="renewal")
        self._thread.start()

    def foresee(self) -> str:
        """Return why no successor will be submitted from here; nothing where one can be."""
        return "" if self._line.is_here else self._line.absence

    def news(self) -> list[str]:
        """Return the lines that are to be said."""
        return [self._news.get_nowait() for _ in range(self._news.qsize())]

    def close(self) -> None:
        """Submit nothing more."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)

    def cancel(self) -> None:
        """End the service: a successor that waits is not to start."""
        self.close()
        if self.successor is None:
            return
        try:
            fate = self._line.fate(self.successor)
            if fate is None or fate.state not in ENDED:
                self._line.cancel(self.successor)
                self._news.put(f"{self.successor}, which was to go on, is cancelled")
        except AegisError as error:
            self._news.put(f"warning: {self.successor} is not cancelled: {error.message}")

    def replace(self, predecessor: str, served: float | None) -> None:
        """Submit another job at once in the place of this one, which has failed.

        Args:
            predecessor: whom that is to take over from.
            served: seconds that this one served; None: it never did.
        """
        self.close()
        if self.successor is not None and served is None:
            return
        self.failed_starts = self.failed_starts + 1 if (served or 0.0) < SETTLED_SECONDS else 0
        if self.failed_starts >= STARTS:
            self._give_up("this job's own failure was the last")
            return
        if self.successor is not None:  # it waits for a time that is too late now
            self.cancel()
        self._submit(After(job=predecessor, failed_starts=self.failed_starts))

    # -- in the thread

    def _run(self) -> None:
        pause = 0.0
        while not self._closed.wait(pause):
            pause = self.step(time.time())

    def step(self, now: float) -> float:
        """Do what is due, and return the seconds until there may be something again."""
        if self._given_up:
            if waiting := self._line.waiting():  # a user helps
                self.successor, self.problem, self._given_up = waiting, "", False
            return RETRY_SECONDS[1]
        if self.successor is not None:
            return self._look()
        if self._terms.is_last:
            return LONG_SECONDS
        if self._at_once:
            return self._submit(After(job=self.job, failed_starts=self.failed_starts))
        wait = self._terms.due - now
        if self._own_timer:
            return wait if wait > 0 else self._submit(After(job=self.job))
        return self._submit(self._terms.after(self.job))

    def _submit(self, after: After) -> float:
        try:  # a submission that seemed to fail may have gone through; and a user may help
            self.successor = (self._refusals and self._line.waiting()) or self._line.submit(after)
        except (AegisError, OSError) as error:
            pause = min(RETRY_SECONDS[1], RETRY_SECONDS[0] * 2.0**self._refusals)
            self._refusals += 1
            said = str(error).removeprefix("no successor: ")
            self._tell(f"no successor: {said}", getattr(error, "hint", None))
            return pause
        self._refusals, self.problem = 0, ""
        waits = after.time is not None and after.time > time.time()
        when = f", to start in {format_walltime(after.time - time.time())}" if waits and after.time else ""
        self._news.put(f"successor {self.successor} is submitted{when}")
        return self._look_seconds

    def _look(self) -> float:
        """See whether the successor is lost."""
        fate = self._line.fate(self.successor or "")
        if fate is None or fate.state not in ENDED:
            return self._look_seconds
        reason = fate.reason.splitlines()[0] if fate.reason else fate.state
        if fate.served:  # what comes after it is its own business
            return LONG_SECONDS
        if fate.state != "FAILED":
            self._given_up = True
            self._tell(f"the service ends with this job: {self.successor} has ended: {reason}")
            return LONG_SECONDS
        self.failed_starts += 1
        self._news.put(f"successor {self.successor} failed: {reason}")
        self.successor, self._at_once = fate.successor, True
        if self.failed_starts >= STARTS and self.successor is None:
            self._give_up(reason)
        return 0.0

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._tell(f"the service ends with this job: {STARTS} starts in a row failed: {reason}")

    def _tell(self, problem: str, hint: str | None = None) -> None:
        if problem != self.problem:
            self._news.put(f"warning: {problem}" + (f" ({hint})" if hint else ""))
        self.problem = problem
