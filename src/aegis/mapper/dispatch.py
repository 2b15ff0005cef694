"""Rows sent to instances, and their answers to the journal."""

from __future__ import annotations

import asyncio
import random
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

import aiohttp
from msgspec import Struct

from aegis.errors import AegisError, ConfigError, PartialSuccess, SiteError
from aegis.mapper.ahead import Ahead
from aegis.mapper.answers import Again, Finished, Problem, failed, judge
from aegis.mapper.balance import Balance, Lane, Limits
from aegis.mapper.polling import poll_loads
from aegis.mapper.progress import Counts, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.api.targets import Target
    from aegis.mapper.journal import Journal
    from aegis.mapper.rows import Row

BUSY_TRIES: Final = 100  # of a row, with instances that had no room for it: that is not the row's fault
BACK_OFF: Final = 0.25  # seconds before a row's second try at most, doubled each time
LONGEST_BACK_OFF: Final = 30.0
ELSEWHERE: Final = 1.0  # seconds that a row waits for another instance than the one where it failed
TICK: Final = 0.25  # seconds: the longest sleep between two looks at everything
FOLLOW: Final = 1.0  # seconds between two looks at which instances there are
CONNECT_SECONDS: Final = 10.0
GONE_SECONDS: Final = 60.0  # that answers of an instance are waited for after it has left
BACKLOG_BYTES: Final = 64 << 20  # that may wait for a slow disk
HOPELESS: Final = frozenset({"missing", "refused"})
MISSING: Final = 16  # answers that there is no such model or route, and no good one: that is enough
DECAY: Final = 0.999  # per answer, of how long the longest took: what was slow once is forgotten
QUIET: Final = 5.0  # seconds without an answer after which the progress tells why
HEADERS: Final = {"Content-Type": "application/json"}


class Settings(Struct, frozen=True, kw_only=True):
    """How rows are sent."""

    deadline: float = 600.0  # seconds one request may take
    tries: int = 5  # of a row, where instances fail it
    patience: float = 600.0  # seconds without any answer before the run gives up
    limits: Limits = Limits()
    in_flight: int = 16384  # rows at once, over all instances
    ends_at: float | None = None  # of the monotonic clock: then the run is over
    grace: float = (
        60.0  # seconds before that, at least, in which no row is sent: for the answers that are due
    )


class Fleet(Protocol):
    """The instances there are; `aegis.api.targets.Targets` is one."""

    def now(self) -> tuple[int, tuple[Target, ...]]:
        """Return a revision and the instances."""


class Job:
    """A row on its way."""

    __slots__ = ("avoid", "busy", "row", "tries")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.tries = self.busy = 0
        self.avoid: Lane | None = None


class Dispatcher:
    """Sends rows to the instances of a fleet until all are done, or a stop.

    To be made inside a running event loop.
    """

    def __init__(
        self, session: aiohttp.ClientSession, fleet: Fleet, journal: Journal, settings: Settings
    ) -> None:
        self._session, self._fleet, self._journal, self._settings = session, fleet, journal, settings
        self._loop = asyncio.get_running_loop()
        self._timeout = aiohttp.ClientTimeout(total=settings.deadline, sock_connect=CONNECT_SECONDS)
        self._balance = Balance(settings.limits)
        self._revision: int | None = None
        self._again: list[tuple[float, int, Job]] = []  # when it is due, where it stands, what
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._stopped = self._exhausted = False  # nothing more is sent; every row was read
        self._until = inf if settings.ends_at is None else settings.ends_at  # answers are waited for
        self._longest = 0.0  # seconds that an answer took, lately
        self._problem = ""  # the latest of an instance
        self._missing = 0  # answers that there is no such model or route
        self._heard = False  # a good answer, ever
        self._heard_at = self._loop.time()
        self._counts = Counts(self._heard_at)

    def stop(self, grace: float | None = None) -> None:
        """Send nothing more; what is under way is waited for, so many seconds at most."""
        self._stopped = True
        self._until = min(self._until, inf if grace is None else self._loop.time() + grace)
        self._changed.set()

    def progress(self) -> Progress:
        """Return how far the run is."""
        return self._counts.progress(
            self._loop.time(),
            rows=self._journal.rows,
            done=self._journal.done,
            failed=self._journal.failed,
            in_flight=len(self._tasks),
            instances=len(self._balance.lanes),
            trouble=self._problem if self._loop.time() - self._heard_at > QUIET else "",
        )

    async def run(self, rows: Iterator[Row]) -> None:
        """Bring every row to the journal.

        Raises:
            PartialSuccess: no instance answers any more.
            SiteError: none ever did, or they refuse the key.
            ConfigError: they do not know the model or the route; or the input changed while it was read.
        """
        ahead = Ahead(rows)
        self._look_around()
        helpers = [asyncio.create_task(self._follow())]
        if not self._settings.limits.fixed:
            polling = poll_loads(self._session, self._balance, self._changed.set)
            helpers.append(asyncio.create_task(polling))
        try:
            while job := await self._next(ahead):
                if lane := await self._lane(job):
                    self._send(job, lane)
            if self._tasks:  # a stop
                left = max(0.0, self._until - self._loop.time())
                await asyncio.wait(self._tasks, timeout=None if left == inf else left)
            self._raise()
        finally:
            ends = [*helpers, *self._tasks]
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            await ahead.close()

    # What is done next

    async def _next(self, ahead: Ahead) -> Job | None:
        """Return a row to send: one that is due again, else a new one; None when all are done, or after a stop."""
        while not self._stopping():
            self._raise()
            if self._again and self._again[0][0] <= self._loop.time():
                return heappop(self._again)[-1]
            if not self._exhausted and self._has_room():
                row = await ahead.take()
                if row is not None:
                    return Job(row)
                self._exhausted = True
            elif self._exhausted and not self._tasks and not self._again:
                return None
            else:
                await self._sleep(self._again[0][0] if self._again else inf)
        return None

    def _has_room(self) -> bool:
        under_way = len(self._tasks) + len(self._again)
        return under_way < self._settings.in_flight and self._journal.backlog < BACKLOG_BYTES

    async def _lane(self, job: Job) -> Lane | None:
        """Return who takes a row; None after a stop, or where the row waits for a better one."""
        while not self._stopping():
            self._raise()
            now = self._loop.time()
            if lane := self._balance.choose(job.row.model, now, job.avoid):
                return lane
            if job.avoid:
                job.avoid = None
                self._put_back(job, ELSEWHERE)
                return None
            if not self._tasks and now - self._heard_at > self._settings.patience:
                raise self._silence(job.row.model)
            await self._sleep(self._balance.wakes_at(now))
        return None

    def _silence(self, model: str) -> AegisError:
        there = len(self._balance.serving(model))
        what = f" of {model!r}" if model else ""
        kind = PartialSuccess if self._heard else SiteError
        return kind(
            f"no answer for {self._settings.patience:g} s: "
            + (f"none of {there} instances{what} works" if there else f"there is no instance{what}")
            + (f" ({self._problem})" if self._problem else ""),
            hint="nothing is lost: run the same command to continue",
        )

    async def _sleep(self, until: float) -> None:
        """Wait for whatever changes, or until a time, or a moment."""
        self._changed.clear()
        timer = self._loop.call_at(min(self._loop.time() + TICK, until), self._changed.set)
        await self._changed.wait()
        timer.cancel()

    def _stopping(self) -> bool:
        end = self._settings.ends_at
        if end is not None and self._loop.time() >= end - max(self._settings.grace, self._longest):
            self._stopped = True
        return self._stopped

    def _raise(self) -> None:
        if self._error:
            raise self._error

    def _put_back(self, job: Job, seconds: float) -> None:
        heappush(self._again, (self._loop.time() + seconds, job.row.position, job))

    # One row

    def _send(self, job: Job, lane: Lane) -> None:
        lane.take()
        task = asyncio.create_task(self._serve(job, lane))
        self._tasks.add(task)
        lane.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._error = error
        self._changed.set()

    async def _serve(self, job: Job, lane: Lane) -> None:
        sent = self._loop.time()
        try:
            answer = await self._ask(job.row, lane)
        except asyncio.CancelledError:
            if not lane.recalled:
                raise
            self._put_back(job, 0.0)  # its instance has left, which is not the row's fault
        else:
            if isinstance(answer, Finished):
                self._longest = max(self._loop.time() - sent, self._longest * DECAY)
            self._settle(job, lane, answer)
        finally:
            self._balance.release(lane)
            lane.tasks.discard(asyncio.current_task())

    async def _ask(self, row: Row, lane: Lane) -> Finished | Again:
        body = row.body
        if not row.model and lane.target.models:
            body = b'{"model":%b,%b' % (lane.name, body[1:])
        try:
            async with self._session.post(
                lane.url + row.path, data=body, headers=HEADERS, timeout=self._timeout, allow_redirects=False
            ) as response:
                answer = await response.read()
                return judge(row, response.status, answer, response.headers.get("Retry-After"))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Again("unreachable", Problem("connection", str(error)))
        except TimeoutError:
            return Again("failed", Problem("timeout", f"no answer within {self._settings.deadline:g} s"))
        except (aiohttp.ClientError, OSError) as error:
            return Again("failed", Problem("connection", f"{lane.target.address}: {error}"))

    def _settle(self, job: Job, lane: Lane, answer: Finished | Again) -> None:
        now = self._loop.time()
        if isinstance(answer, Finished):
            lane.hear("answered", now)
            self._heard, self._heard_at = True, now
            self._finish(job.row, answer)
            return
        lane.hear(answer.word, now, answer.wait)
        self._problem = answer.problem.message
        job.busy += answer.word == "busy"
        job.tries += answer.word in {"failed", "missing"}
        self._check_hope(job, lane, answer)
        if job.tries >= self._settings.tries or job.busy >= BUSY_TRIES:
            self._finish(job.row, failed(job.row, answer.problem))
            return
        job.avoid = lane
        longest = min(BACK_OFF * 2 ** (job.tries + job.busy - 1), LONGEST_BACK_OFF)
        self._put_back(job, longest * random.uniform(0.5, 1))  # noqa: S311 - spreads what failed together

    def _check_hope(self, job: Job, lane: Lane, answer: Again) -> None:
        """End a run that no instance answers by its nature, instead of failing a million rows one by one."""
        lane.hopeless = answer.word in HOPELESS
        if self._heard or not all(each.hopeless for each in self._balance.serving(job.row.model)):
            return
        told = f"{answer.problem.message} (HTTP {answer.problem.status})"
        if answer.word == "refused":
            raise SiteError(
                f"{lane.target.address} refuses to answer: {told}",
                hint="set VLLM_API_KEY, or name a file that holds the key: --api-key-file",
            )
        self._missing += 1
        if self._missing >= MISSING or job.tries >= self._settings.tries:
            raise ConfigError(
                f"{lane.target.address} has no such model or route: {told}",
                hint="no row was answered: check the model and the kind of request",
            )

    def _finish(self, row: Row, answer: Finished) -> None:
        self._counts.add(answer)
        self._journal.append(row.position, answer.line, failed=answer.failed)

    # The instances

    def _look_around(self) -> None:
        revision, targets = self._fleet.now()
        if revision == self._revision:
            return
        self._revision = revision
        for lane in self._balance.update(targets):
            self._loop.call_later(GONE_SECONDS, self._recall, lane)
        self._changed.set()

    def _recall(self, lane: Lane) -> None:
        """Take back the rows of an instance that has left: it may be a node that lost its power."""
        if lane.target not in self._balance:
            lane.recalled = True
            for task in lane.tasks:
                task.cancel()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW)
            self._look_around()
