"""`aegis map` for prompts: rows of the inputs sent to the servers, their answers brought into the output."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aegis.api.announce import Announcement
from aegis.api.http import open_session
from aegis.cli.live import Live
from aegis.cli.map_end import find_end, grace_of, grace_of_signal
from aegis.cli.map_told import Told, progress_line, summary_line
from aegis.cli.render import print_json
from aegis.cli.servers import open_targets, read_key
from aegis.errors import AegisError, InterruptedByUser, PartialSuccess, SiteError
from aegis.mapper.balance import Limits
from aegis.mapper.dispatch import Dispatcher, Settings
from aegis.mapper.run import Run, check_models
from aegis.processes import raise_file_limit
from aegis.spec.walltime import format_age

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from aegis.api.targets import Targets
    from aegis.mapper.rows import Source

STOPPING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # `sbatch --signal=USR1@120` is usual
DESCRIPTORS: Final = 64  # for other things than connections
ANNOUNCE_SECONDS: Final = 2.0  # between two words to the registry
AGAIN: Final = "run the same command to continue"


class Prompts:
    """One run of the command.

    Args:
        source: the rows.
        output: where their answers go.
        handle: the job whose servers answer.
        how: what `server_options` gave.
        options: of the command, by name.
        continue_later: queues the same work again, where rows are left at the end, and says how.

    Raises:
        ConfigError: a time is wrong.
    """

    def __init__(
        self,
        source: Source,
        output: Path,
        handle: str | None,
        how: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        continue_later: Callable[[], str] | None = None,
    ) -> None:
        self._source, self._output, self._handle, self._how = source, output, handle, how
        self._options, self._continue_later = options, continue_later
        self._live = Live(sys.stderr)
        self._end = find_end(handle, options["walltime"], options["stop_at"], self._live.say)
        self._ends_at = time.monotonic() + self._end.seconds if self._end else None
        self._by_hand = False  # somebody pressed Ctrl-C
        self._key = read_key(how)

    def work(self) -> None:
        """Do what is left, and tell what became of it.

        Raises:
            PartialSuccess: rows are left, or failed.
            AegisError: it cannot go on; nothing that was written is lost.
        """
        problem: AegisError | None = None
        told = Told(output=os.fsencode(self._output).decode("utf-8", "backslashreplace"))
        with self._live:
            self._live.show(f"reading {self._source.name}")
            with Run(self._source, self._output, retry_failed=self._options["retry_failed"]) as run:
                before = run.journal.done
                if run.journal.left:
                    problem = self._send(run, told)
                outcome = run.finish()
            told.rows, told.done, told.failed, told.left = (
                outcome.rows,
                outcome.done,
                outcome.failed,
                outcome.left,
            )
            self._live.say(summary_line(told))
            problem = self._continue(told, problem, outcome.done - before) or problem
        told.error = problem.message if problem else None
        if self._options["as_json"]:
            print_json(told.as_dict())
        self._require(told, problem)

    def _continue(self, told: Told, problem: AegisError | None, done: int) -> AegisError | None:
        """Queue the continuation where it was asked for and will not meet the same end; return what went wrong."""
        if not self._continue_later or not told.left or self._by_hand:
            return None
        if problem and not isinstance(problem, PartialSuccess):
            return None
        if not done:
            self._live.say("not queued again: no row was done")
            return None
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a job that is put back is ended by that
        try:
            self._live.say(self._continue_later())
        except AegisError as error:
            return error
        told.resubmitted = True
        return None

    @staticmethod
    def _require(told: Told, problem: AegisError | None) -> None:
        if problem and not isinstance(problem, PartialSuccess):
            raise problem
        if told.left:
            left = f"{told.left:,} left; {'queued again' if told.resubmitted else AGAIN}"
            raise PartialSuccess(f"{problem.message}\n{left}" if problem else left)
        if told.failed:
            one = told.failed == 1
            what = "1 row failed; see its error" if one else f"{told.failed:,} rows failed; see their errors"
            raise PartialSuccess(
                f"{what} in {told.output}",
                hint=f"the same command with --retry-failed does {'it' if one else 'these rows'} again",
            )

    # Sending

    def _send(self, run: Run, told: Told) -> AegisError | None:
        """Send the rows that are left; return what ended that early."""
        journal = run.journal
        if journal.done:
            self._live.say(f"{journal.done:,} of {journal.rows:,} rows are done already")
        if journal.damaged:
            self._live.say(
                f"{journal.damaged:,} records of {journal.path} were damaged; their rows are done again"
            )
        if self._end:
            self._live.say(f"stops in time for {self._end.why}, in {format_age(self._end.seconds)}")
        with open_targets(self._handle, self._how) as targets:
            _, there = targets.now()
            if not there and targets.problem:
                raise SiteError(f"no server answers: {targets.problem}")
            check_models(run.survey, there)
            try:
                return asyncio.run(self._drive(run, targets, told))
            except asyncio.CancelledError:
                raise InterruptedByUser(f"interrupted; {journal.left:,} left", hint=AGAIN) from None
            finally:
                signal.signal(signal.SIGTERM, signal.default_int_handler)  # asyncio left the system's

    async def _drive(self, run: Run, targets: Targets, told: Told) -> AegisError | None:
        async with open_session(api_key=self._key) as session:
            dispatcher = Dispatcher(session, targets, run.journal, self._settings())
            self._listen(dispatcher)
            telling = [
                asyncio.create_task(self._show(dispatcher, targets)),
                asyncio.create_task(_announce(dispatcher, targets)),
            ]
            try:
                await run.work(dispatcher)
            except AegisError as error:
                return error
            finally:
                for task in telling:
                    task.cancel()
                await asyncio.gather(*telling, return_exceptions=True)
                told.count(dispatcher.progress())
        return None

    def _settings(self) -> Settings:
        options = self._options
        most = raise_file_limit()
        known = Settings()
        return Settings(
            deadline=options["deadline"],
            tries=options["tries"],
            patience=options["patience"],
            limits=Limits(fixed=options["concurrency"]),
            in_flight=max(1, min(known.in_flight, most - DESCRIPTORS)),
            ends_at=self._ends_at,
            grace=grace_of(options["grace"], self._end),
        )

    def _listen(self, dispatcher: Dispatcher) -> None:
        """Stop in good order at a signal; at once at the second Ctrl-C."""
        loop, working = asyncio.get_running_loop(), asyncio.current_task()
        assert working  # noqa: S101 - a coroutine runs

        def stop(number: signal.Signals) -> None:
            self._live.say(f"{number.name}: no row is sent any more; waiting for those under way")
            dispatcher.stop(grace_of_signal(self._options["grace"], os.environ))

        def interrupt() -> None:
            if self._by_hand:
                working.cancel()
                return
            self._by_hand = True
            self._live.say("stopping: waiting for the rows under way; Ctrl-C again ends at once")
            dispatcher.stop(self._options["grace"])

        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, stop, number)
        loop.add_signal_handler(signal.SIGINT, interrupt)

    async def _show(self, dispatcher: Dispatcher, targets: Targets) -> None:
        while True:
            await asyncio.sleep(self._live.seconds)
            self._live.show(progress_line(dispatcher.progress(), targets.problem))


async def _announce(dispatcher: Dispatcher, targets: Targets) -> None:
    """Tell the registry of the servers how far the run is, until this is cancelled."""
    if targets.registry is None:
        return
    entry = Announcement(targets.registry)
    try:
        while True:
            now = dispatcher.progress()
            await asyncio.to_thread(entry.tell, {**msgspec.structs.asdict(now), "text": progress_line(now)})
            await asyncio.sleep(ANNOUNCE_SECONDS)
    finally:
        entry.end()
