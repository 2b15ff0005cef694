"""Files that are left, worked on: who takes the next one, and what becomes of each try."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from math import inf
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from aegis.errors import AegisError, PartialSuccess, SiteError
from aegis.mapper.files.attempt import Try, answers, reason_of, without_proxy
from aegis.mapper.files.crew import Crew
from aegis.mapper.files.progress import Counts, Progress, left_seconds
from aegis.mapper.files.publish import ENDINGS, LOG, Form, publish, remove
from aegis.mapper.files.schedule import Rules, Schedule
from aegis.mapper.held import FULL, full

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from aegis.api.targets import Target
    from aegis.mapper.dispatch import Fleet
    from aegis.mapper.files.crew import Ended
    from aegis.mapper.files.run import FilesRun
    from aegis.mapper.files.schedule import Start
    from aegis.mapper.files.site import Site

TICK: Final = 1.0  # seconds: the longest sleep between two looks at everything
SYNC_SECONDS: Final = 5.0  # what a crash of this machine loses at most
FIRST_FAILURES: Final = 10  # different files that fail before any succeeds: it is the program
REASON: Final = 300  # characters kept of why a file failed


class Settings(Struct, frozen=True, kw_only=True):
    """How files are worked on."""

    rules: Rules = Rules()
    form: Form = "tar.gz"
    keep_logs: bool = False  # of files that are done, too
    model: str = ""  # only instances that serve it
    deadline: float | None = None  # seconds that a try of a file may take
    kill_seconds: float = 10.0  # between asking a program to end and ending it
    gone_seconds: float = 30.0  # that the programs of an instance go on after it has left
    patience: float = 600.0  # seconds without any instance before the run gives up
    ends_at: float = inf  # of the monotonic clock: then all is over
    grace: float = 60.0  # seconds before that in which nothing is begun
    scratch: str = ""
    key: str | None = None  # of the servers
    key_file: str = ""  # that holds it already


class Work:
    """A run while it goes on; to be made inside of a running event loop.

    Args:
        run: what is left to do.
        site: how workers are started.
        fleet: the instances, followed.
        alive: tells whether an instance answers, when a program failed there.
    """

    def __init__(
        self,
        run: FilesRun,
        site: Site,
        fleet: Fleet,
        *,
        alive: Callable[[Target], bool] = answers,
    ) -> None:
        self._run, self._site, self._fleet, self._alive = run, site, fleet, alive
        self._settings, self._script, self._output = run.settings, run.script, run.output
        self._inputs, self._ledger, self._folder = run.inputs, run.ledger, run.folder
        self._schedule: Schedule[Target] = Schedule(len(run.inputs), run.settings.rules)
        self._tries: dict[int, Try] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._failing: set[int] = set()  # files that failed
        self._last = 0  # number of a try
        now = time.monotonic()
        self._counts = Counts(now)
        self._served_at = self._synced = now
        ends_at = run.settings.ends_at
        self._stops_at, self._kills_at = ends_at - run.settings.grace, ends_at - run.settings.kill_seconds

    def stop(self, grace: float | None = None) -> None:
        """Begin nothing more; programs that run have so many seconds to end, or any time."""
        now = time.monotonic()
        self._stops_at = now
        self._kills_at = min(self._kills_at, now + grace if grace is not None else inf)
        self._changed.set()

    def progress(self) -> Progress:
        """Return how far the run is."""
        now = time.monotonic()
        rates = self._counts.rates(now)
        done_bytes = self._run.skipped_bytes + self._counts.bytes
        schedule = self._schedule
        instances, resting = schedule.instances(now)
        return Progress(
            files=self._run.skipped + schedule.files,
            bytes=self._run.bytes,
            done=self._run.skipped + self._run.finished,
            done_bytes=done_bytes,
            failed=self._run.failed,
            running=schedule.running,
            instances=instances,
            resting=resting,
            rate=rates[0] if rates else None,
            files_rate=rates[1] if rates else None,
            eta=left_seconds(rates, self._run.bytes - done_bytes, schedule.left),
        )

    async def run(self) -> None:
        """Bring every file to its end, or as many as there is time for.

        Raises:
            AegisError: the disk is full, the program fails for every file, or there is no instance; nothing is lost.
        """
        async with Crew(self._site, self._folder, self._settings.scratch, self._changed.set) as self._crew:
            try:
                while self._goes_on(time.monotonic()):
                    await self._sleep()
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ledger.sync()
        if self._error:
            raise self._error

    # What is done next

    def _goes_on(self, now: float) -> bool:
        """Look at everything, and begin what can begin; False at the end."""
        if self._error:
            return False
        if not self._schedule.left:
            return bool(self._tasks)  # what became of the last is still to be noted
        self._look_around()
        if now - self._synced >= SYNC_SECONDS:
            self._ledger.sync()
            self._synced = now
        if now >= self._stops_at:
            if now >= self._kills_at:
                self._kill(self._tries, "stop")
            return bool(self._tasks)
        for start in self._schedule.take(now):
            self._begin(start)
        if self._tasks:
            self._served_at = now
        elif now - self._served_at > self._settings.patience:
            raise self._silence()
        return True

    def _look_around(self) -> None:
        """Take over which instances there are, and whether a worker is there for each."""
        _, targets = self._fleet.now()
        targets = tuple(each for each in targets if self._serves(each))
        self._crew.want(dict.fromkeys(each.node or each.host for each in targets))
        usable = {each: self._crew.at(each.node or each.host) is not None for each in targets}
        for lane in self._schedule.update(usable):
            asyncio.get_running_loop().call_later(self._settings.gone_seconds, self._recall, lane.key)

    def _recall(self, target: Target) -> None:
        """End the programs of an instance that has left, unless it is back."""
        lane = self._schedule.lanes.get(target)
        if lane and not lane.usable:
            self._kill(lane.running, "gone")

    def _serves(self, target: Target) -> bool:
        return not self._settings.model or self._settings.model in target.models

    def _kill(self, positions: Iterable[int], why: str) -> None:
        for position in list(positions):
            if position in self._tries:
                self._tries[position].kill(why, self._settings.kill_seconds)

    async def _sleep(self) -> None:
        """Wait for whatever changes, or a moment."""
        now, wakes = time.monotonic(), self._schedule.wakes_at(time.monotonic())
        wakes = min([wakes, *(at for at in (self._stops_at, self._kills_at) if at > now)])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(TICK, wakes - now))):
                await self._changed.wait()
        self._changed.clear()

    def _silence(self) -> AegisError:
        there = len(self._schedule.lanes)
        model = f" of {self._settings.model!r}" if self._settings.model else ""
        problem = getattr(self._fleet, "problem", "")
        what = f"none of {there} instances{model} works" if there else f"there is no instance{model}"
        kind = PartialSuccess if self._counts.files else SiteError
        return kind(
            f"{what} for {self._settings.patience:g} s{problem and f' ({problem})'}",
            hint="nothing is lost: run the same command to continue",
        )

    # One try

    def _begin(self, start: Start[Target]) -> None:
        task = asyncio.create_task(self._serve(start.position, start.key))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._error = self._error or error
        self._changed.set()

    async def _serve(self, position: int, target: Target) -> None:
        worker = self._crew.at(target.node or target.host)
        if worker is None:  # it left this very moment
            self._lost(position, "its node was lost")
            return
        self._last += 1
        each = self._tries[position] = Try(self._last, position, target, worker, self._folder)
        future = each.start(self._order(each))
        try:
            await asyncio.wait({future}, timeout=self._settings.deadline)
            if not future.done():
                each.kill("deadline", self._settings.kill_seconds)
            ended = await future
        finally:
            del self._tries[position]
        await self._settle(each, ended)
        await asyncio.to_thread(_take_away, each.part, each.log)

    def _order(self, each: Try) -> dict[str, Any]:
        target, settings = each.target, self._settings
        own_key = settings.key_file or str(self._folder / "key")
        values = {
            "input": self._inputs.path(each.position),
            "output": f"{each.worker.scratch}/{each.number}/output",
            "base_url": target.base_url,
            "host": target.host,
            "port": str(target.port),
            "model": settings.model or (target.models[0] if target.models else ""),
            "api_key_file": own_key if settings.key else os.devnull,
        }
        return {
            "argv": self._script.argv(values),
            "cwd": os.getcwd(),  # noqa: PTH109 - text
            "env": {
                name: without_proxy(os.environ.get(name, ""), target.host)
                for name in ("no_proxy", "NO_PROXY")
            },
            "form": settings.form,
            "name": _last_part(self._inputs.names[each.position]),
            "keep_log": settings.keep_logs,
        }

    async def _settle(self, each: Try, ended: Ended) -> None:
        """Bring a try to its end."""
        position, address = each.position, each.target.address
        if ended.lost:
            self._lost(position, "its node was lost")
        elif ended.code == 0 and not ended.error:
            await self._publish(each)
        elif ended.code == 0 and ended.errno in FULL:
            raise full(self._output, ended.error)
        elif each.killed == "gone":
            self._lost(position, f"{address} was lost")
        elif each.killed == "deadline":
            await self._fail(each, f"it took longer than {self._settings.deadline:g} s")
        elif not each.killed:  # at the end of the time it is left for the next run
            why = reason_of(ended)
            if await asyncio.to_thread(self._alive, each.target):
                await self._fail(each, why)
            else:
                self._lost(position, f"{address} does not answer; {why}", by=each.target)

    async def _publish(self, each: Try) -> None:
        entry = self._inputs[each.position]
        final = self._output / f"{entry.name}{ENDINGS[self._settings.form]}"
        log = self._output / f"{entry.name}{LOG}"
        try:
            await asyncio.to_thread(publish, each.part, final)
            if self._settings.keep_logs:
                await asyncio.to_thread(publish, each.log, log)
            elif self._ledger.was_failed(entry.name):
                log.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in FULL:
                raise full(self._output, str(error.strerror)) from None
            await self._fail(each, f"{error.filename}: {error.strerror}")
            return
        self._ledger.add(entry)
        self._schedule.done(each.position)
        self._counts.add(entry.size)
        self._run.finished += 1

    def _lost(self, position: int, why: str, by: Target | None = None) -> None:
        if self._schedule.lost(position, time.monotonic(), by=by):
            self._finish(position, f"{why}, and so it was each time")

    async def _fail(self, each: Try, why: str) -> None:
        self._failing.add(each.position)
        final = self._schedule.failed(each.position, time.monotonic())
        many = len(self._failing) >= max(FIRST_FAILURES, 2 * len(self._tries))
        if many and not self._counts.files and self._schedule.failing:
            raise AegisError(
                f"the program failed for the first {len(self._failing)} files, the last time so: {why}",
                hint="try it by hand with one file, then run the same command",
            )
        if final:
            log = self._output / f"{self._inputs.names[each.position]}{LOG}"
            with contextlib.suppress(OSError):
                await asyncio.to_thread(publish, each.log, log)
            self._finish(each.position, why)

    def _finish(self, position: int, why: str) -> None:
        entry = self._inputs[position]
        self._ledger.add(entry, why[:REASON])
        self._run.finished += 1
        self._run.failed += 1
        if len(self._run.reasons) < FIRST_FAILURES:
            self._run.reasons.append(f"{entry.name}: {why[:REASON]}")


def _take_away(*parts: Path) -> None:
    for each in parts:
        remove(each)


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]
