"""What `aegis map --script` does: workers, progress, signals, and what became of the files."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from msgspec.structs import asdict

from aegis.api.announce import Announcement
from aegis.cli.live import Live, clock_text
from aegis.cli.map_end import continuation, find_end, grace_of, grace_of_signal
from aegis.cli.render import print_json
from aegis.cli.servers import open_targets, read_key
from aegis.errors import AegisError, ConfigError, InterruptedByUser, NotFoundError, PartialSuccess, SiteError
from aegis.fleet.inside import handle_of
from aegis.fleet.nodes import allocation, head_of
from aegis.fleet.services import tied
from aegis.mapper.files.run import FilesRun
from aegis.mapper.files.schedule import Rules
from aegis.mapper.files.site import Site, short
from aegis.mapper.files.work import Settings, Work
from aegis.processes import raise_file_limit
from aegis.runs import RunDir
from aegis.schedulers.base import GROUP_VARIABLE, JOB_VARIABLE, RUN_DIR_VARIABLE
from aegis.spec import platforms
from aegis.spec.walltime import format_age
from aegis.staging.progress import size_text
from aegis.step import step_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aegis.api.targets import Target, Targets
    from aegis.cli.map_end import End
    from aegis.mapper.files.progress import Progress
    from aegis.mapper.files.run import Outcome
    from aegis.mapper.files.script import Script
    from aegis.spec.platform import Platform

STOPPING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # `sbatch --signal=USR1@120` is usual
AGAIN: Final = "run the same command to continue"
MINUTE: Final = 60
SHOWN: Final = 5  # failures
ANNOUNCE_SECONDS: Final = 5.0  # between two words to the registry


class Files:
    """One run of the command."""

    def __init__(
        self, script: Script, handle: str | None, how: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        self._script, self._handle, self._how, self._options = script, handle, how, options
        self._live: Live = Live(sys.stderr)
        self._again = continuation(resubmit=options["resubmit"], command=options["resubmit_with"])
        self._end: End | None = find_end(handle, options["walltime"], options["stop_at"], self._live.say)
        self._ends_at = time.monotonic() + self._end.seconds if self._end else None
        self._key = read_key(how)
        self._by_hand = False  # somebody pressed Ctrl-C
        self._began = time.monotonic()

    def work(self, inputs: Iterable[Path]) -> None:
        """Do what is left, and tell what became of it."""
        problem: AegisError | None = None
        with self._live:
            self._live.show("looking at the inputs")
            with FilesRun(
                self._script,
                inputs,
                self._options["output"],
                self._settings(),
                retry_failed=self._options["retry_failed"],
            ) as run:
                self._greet(run)
                if len(run.inputs):
                    try:
                        asyncio.run(self._drive(run))
                    except AegisError as error:
                        problem = error
                    except (asyncio.CancelledError, KeyboardInterrupt):
                        problem = InterruptedByUser(f"interrupted; {run.outcome().left:,} left", hint=AGAIN)
                outcome, finished = run.outcome(), run.finished
            self._sum_up(outcome)
            resubmitted = False
            in_order = problem is None or isinstance(problem, PartialSuccess)
            if self._again and outcome.left and finished and in_order and not self._by_hand:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a job that is put back is ended by that
                try:
                    self._live.say(self._again())
                    resubmitted = True
                except AegisError as error:
                    problem = error
        self._finish(outcome, problem, resubmitted=resubmitted)

    def _settings(self) -> Settings:
        options, key_file = self._options, self._how["api_key_file"]
        source = click.get_current_context().get_parameter_source("deadline")
        own_deadline = source is not click.core.ParameterSource.DEFAULT  # that of rows is minutes
        return Settings(
            rules=Rules(slots=options["slots"], tries=options["tries"]),
            form=options["archive"] if "output" in self._script.names else "stdout",
            keep_logs=options["keep_logs"],
            model=options["model"] or "",
            deadline=options["deadline"] if own_deadline else None,
            patience=options["patience"],
            grace=grace_of(options["grace"], self._end),
            scratch=options["scratch"] or "",
            key=self._key,
            key_file=os.path.abspath(key_file) if key_file else "",  # noqa: PTH100 - links stay
            **({"ends_at": self._ends_at} if self._ends_at is not None else {}),
        )

    def _greet(self, run: FilesRun) -> None:
        if run.skipped:
            self._live.say(f"{run.skipped:,} of {run.skipped + len(run.inputs):,} files are done already")
        if run.changed:
            self._live.say(f"{files_text(run.changed)} changed since it was done: done again")
        if self._end:
            self._live.say(f"stops in time for {self._end.why}, in {format_age(self._end.seconds)}")

    async def _drive(self, run: FilesRun) -> None:
        raise_file_limit()  # each node has a connection
        with open_targets(self._handle, self._how) as targets:
            _, there = targets.now()
            if not there and targets.problem:
                raise SiteError(f"no server answers: {targets.problem}")
            check_model(self._script, there, self._options["model"])
            site = find_site(self._options["where"], there)
            work = Work(run, site, targets)
            self._live.say(f"programs run {'next to their servers' if site.nodes else 'on this machine'}")
            self._listen(work)
            telling = [
                asyncio.create_task(self._show(work, targets)),
                asyncio.create_task(_announce(work, targets)),
            ]
            try:
                await work.run()
            finally:
                for task in telling:
                    task.cancel()
                await asyncio.gather(*telling, return_exceptions=True)

    async def _show(self, work: Work, targets: Targets) -> None:
        while True:
            await asyncio.sleep(self._live.seconds)
            self._live.show(progress_line(work.progress(), targets.problem))

    def _listen(self, work: Work) -> None:
        """Stop in good order at a signal; at once at the second Ctrl-C."""
        loop, working = asyncio.get_running_loop(), asyncio.current_task()
        assert working  # noqa: S101 - a coroutine runs

        def stop(number: signal.Signals) -> None:
            self._live.say(f"{number.name}: no file is begun any more; waiting for programs that run")
            work.stop(grace_of_signal(self._options["grace"], os.environ))

        def interrupt() -> None:
            if self._by_hand:
                working.cancel()
                return
            self._by_hand = True
            self._live.say("stopping: waiting for programs that run; Ctrl-C again ends them")
            work.stop(self._options["grace"])

        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, stop, number)
        loop.add_signal_handler(signal.SIGINT, interrupt)

    # What became of it

    def _sum_up(self, outcome: Outcome) -> None:
        parts = [f"{files_text(outcome.files)}: {outcome.done - outcome.failed:,} done"]
        parts += [f"{outcome.failed:,} failed"] if outcome.failed else []
        parts += [f"{outcome.left:,} left"] if outcome.left else []
        for reason in outcome.reasons[:SHOWN]:
            self._live.say(f"failed: {reason}")
        if len(outcome.reasons) > SHOWN:
            self._live.say("failed: and others; the .log beside each says why")
        self._live.say(f"{', '.join(parts)}; {clock_text(time.monotonic() - self._began)}")

    def _finish(self, outcome: Outcome, problem: Exception | None, *, resubmitted: bool) -> None:
        if self._options["as_json"]:
            print_json(
                {
                    "output": os.fsencode(self._options["output"]).decode("utf-8", "backslashreplace"),
                    "rows": outcome.files,  # the key of both modes
                    "files": outcome.files,
                    "done": outcome.done,
                    "failed": outcome.failed,
                    "left": outcome.left,
                    "seconds": round(time.monotonic() - self._began, 3),
                    "resubmitted": resubmitted,
                    "error": str(problem) if problem else None,
                }
            )
        if problem:
            raise problem
        if outcome.left:
            raise PartialSuccess(f"{outcome.left:,} left; {'queued again' if resubmitted else AGAIN}")
        if outcome.failed:
            raise PartialSuccess(
                f"{files_text(outcome.failed)} failed; see the .log of each in {self._options['output']}",
                hint="the same command with --retry-failed does these files again",
            )


async def _announce(work: Work, targets: Targets) -> None:
    """Tell the registry of the servers how far the run is, until this is cancelled."""
    if targets.registry is None:
        return
    entry = Announcement(targets.registry)
    try:
        while True:
            now = work.progress()
            facts = {**asdict(now), "rows": now.files, "text": progress_line(now)}
            await asyncio.to_thread(entry.tell, facts)
            await asyncio.sleep(ANNOUNCE_SECONDS)
    finally:
        entry.end()


def files_text(count: int) -> str:
    """Return a number of files for people."""
    return f"{count:,} file{'s' * (count != 1)}"


def progress_line(now: Progress, problem: str = "") -> str:
    """Return one line for a person."""
    parts = [
        f"{now.done:,} of {now.files:,} files ({100 * now.done // max(now.files, 1)} %)",
        f"{size_text(now.done_bytes)} of {size_text(now.bytes)}",
    ]
    if now.rate is not None and now.files_rate is not None:
        parts.append(f"{size_text(now.rate)}/s, {now.files_rate * MINUTE:.3g} files/min")
    if now.eta is not None and now.left:
        parts.append(f"{clock_text(now.eta)} left")
    if now.failed:
        parts.append(f"{now.failed:,} failed")
    parts.append(f"{now.running:,} running on {now.instances:,} instance{'s' * (now.instances != 1)}")
    if now.resting:
        parts.append(f"{now.resting:,} resting after failures")
    if problem and not now.instances:
        parts.append(problem)
    return ", ".join(parts)


def check_model(script: Script, targets: tuple[Target, ...], model: str | None) -> None:
    """Refuse a model that no instance serves, and {model} where it may be any of several.

    Raises:
        ConfigError: which of them is served.
    """
    served = sorted({name for target in targets for name in target.models})
    listed = ", ".join(served)
    if model and served and model not in served:
        raise ConfigError(f"no instance serves {model!r}", hint=f"these are served: {listed}")
    if not model and "model" in script.names and len({target.models[:1] for target in targets}) > 1:
        raise ConfigError("several models are served", hint=f"name one with --model: {listed}")


def find_site(where: str, targets: tuple[Target, ...]) -> Site:
    """Return how workers are started: next to the instances inside of their allocation, else here.

    Raises:
        SiteError: programs are to run on nodes, and this is no allocation that has them.
    """
    here = Site(python=sys.executable, tied=tied)
    if where == "here":
        return here
    try:
        there = _nodes_site(here)
    except SiteError:
        if where == "nodes":
            raise
        return here
    if there.launcher == "local":
        return there if where == "nodes" else here
    ours = {short(name) for name in there.names.values()}
    strangers = [each.address for each in targets if there.place(each.node or each.host) not in ours]
    if where == "nodes" and strangers:
        raise SiteError(
            f"{strangers[0]} runs on no node of this allocation",
            hint="use --where here, or run it inside of the job of the servers",
        )
    its_own = bool(targets) or JOB_VARIABLE in os.environ  # in its own job, servers may be still to come
    return there if where == "nodes" or (its_own and not strangers) else here


def _nodes_site(here: Site) -> Site:
    platform = _platform()
    if platform.launcher == "local":
        return msgspec.structs.replace(here, nodes=True)
    hosts = allocation(platform, os.environ)
    head = head_of(hosts, os.uname().nodename, platform.network.host_suffix)
    return msgspec.structs.replace(
        here,
        nodes=True,
        launcher=platform.launcher,
        words=platform.launcher_args,
        het_group=os.environ.get(GROUP_VARIABLE, ""),
        address=head.address,
        environ=step_environment(os.environ),
        names={each: host.name for host in hosts for each in (host.name, host.address)},
    )


def _platform() -> Platform:
    """Return the profile of this site: as was asked for, as that of the job around us, as this machine looks."""
    site = platforms.Site.here(os.environ)
    if asked := os.environ.get("AEGIS_PLATFORM"):
        return platforms.load_platform(asked, site, where="AEGIS_PLATFORM")
    if folder := os.environ.get(RUN_DIR_VARIABLE):
        try:
            name = RunDir.at(Path(folder)).read_manifest().platform
        except NotFoundError:
            name = ""
        if name in platforms.profile_files(site):
            return platforms.load_platform(name, site)
    scheme = (handle_of(os.environ) or "").partition("://")[0]
    return platforms.load_platform("auto", site, scheme or None)
