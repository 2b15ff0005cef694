"""When a run of `aegis map` has to be over, and how its continuation gets into the queue."""

from __future__ import annotations

import datetime as dt
import os
import re
import subprocess
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from aegis.errors import AegisError, ConfigError, SiteError
from aegis.schedulers.base import JOB_VARIABLE, notice
from aegis.spec.walltime import format_age, parse_walltime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OWN_PART: Final = (
    10  # of what is left; a job of one's own needs this much to end in good order, in seconds at most
)
SLURM_END: Final = "SLURM_JOB_END_TIME"
OF_DAY: Final = re.compile(r"\d{1,2}:\d{2}(:\d{2})?")
GRACE: Final = 60.0  # seconds for the answers that are due
KILL_SECONDS: Final = {"slurm": 25.0, "pbs": 8.0}  # from SIGTERM, less than Slurm (KillWait) and PBS wait


class End(NamedTuple):
    """When a run has to be over."""

    seconds: float  # from now
    why: str


def find_end(
    handle: str | None, walltime: str | None, stop_at: str | None, tell: Callable[[str], None]
) -> End | None:
    """Return the first of the ends that a run has: what was asked for, that of the job it is in, of the servers' job.

    Raises:
        ConfigError: a time is written wrong, or has passed.
    """
    ends = []
    if walltime:
        ends.append(End(_walltime(walltime), f"--walltime {walltime}"))
    if stop_at:
        ends.append(End(_until(stop_at), f"--stop-at {stop_at}"))
    from aegis.fleet.inside import handle_of  # noqa: PLC0415 - start-up time

    own = handle_of(os.environ)
    for job in dict.fromkeys(each for each in (own, handle) if each):
        try:
            left = _time_left(job, own)
        except AegisError as error:
            tell(f"warning: when {job} ends is not known: {error.message}")
            continue
        if left is None:
            continue
        # Aegis stops the servers of a job a little before its end.
        serves = job == handle or JOB_VARIABLE in os.environ
        margin = notice(int(max(left, 0))) if serves else min(OWN_PART, left / OWN_PART)
        ends.append(End(max(0.0, left - margin), f"the end of {job}"))
    return min(ends, default=None)


def grace_of(given: float | None, end: End | None) -> float:
    """Return how many seconds answers are waited for, which is little where there is little time."""
    if given is not None:
        return given
    return min(GRACE, end.seconds / OWN_PART) if end else GRACE


def grace_of_signal(given: float | None, environ: Mapping[str, str]) -> float | None:
    """Return how many seconds they are waited for after a SIGTERM; None where nobody will kill."""
    from aegis.fleet.inside import handle_of  # noqa: PLC0415 - start-up time

    scheme = (handle_of(environ) or "").partition("://")[0]
    return given if given is not None else KILL_SECONDS.get(scheme)


def _time_left(job: str, own: str | None) -> float | None:
    if job == own and (told := os.environ.get(SLURM_END, "")).isdecimal():
        return int(told) - time.time()
    from aegis.fleet.jobs import Jobs  # noqa: PLC0415 - start-up time

    jobs = Jobs(os.environ)
    (view,) = jobs.views([jobs.find(job)])
    return view.time_left


def _walltime(text: str) -> float:
    try:
        return float(parse_walltime(text))
    except ValueError as error:
        raise ConfigError(f"--walltime: {error}", hint="write HH:MM:SS or D-HH:MM:SS") from None


def _until(text: str) -> float:
    """Return the seconds to a time of the clock: of a day, or the next time that it is so late."""
    now = dt.datetime.now().astimezone()
    try:
        if OF_DAY.fullmatch(text):
            at = dt.time.fromisoformat(text.zfill(len("00:00") if text.count(":") == 1 else len("00:00:00")))
            moment = dt.datetime.combine(now.date(), at).astimezone()
            if moment <= now:
                moment = dt.datetime.combine(now.date() + dt.timedelta(1), at).astimezone()
        else:
            moment = dt.datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        raise ConfigError(f"--stop-at: {error}", hint="write HH:MM, or 2027-01-31T08:00") from None
    seconds = (moment - now).total_seconds()
    if seconds <= 0:
        raise ConfigError(f"--stop-at {text} was {format_age(-seconds)} ago")
    return seconds


# ------------------------------------------------------------------------------------------- what comes after it


def continuation(*, resubmit: bool, command: str | None) -> Callable[[], str] | None:
    """Return what puts the same work into the queue again, and says how; None where nobody asked for that.

    Raises:
        ConfigError: this is no job that can be put back.
    """
    if resubmit and command:
        raise ConfigError("--resubmit and --resubmit-with exclude each other")
    if command:
        return lambda: _run_command(command)
    if not resubmit:
        return None
    from aegis.fleet.inside import handle_of  # noqa: PLC0415 - start-up time

    scheme, _, job = (handle_of(os.environ) or "").partition("://")
    if scheme == "slurm":
        return lambda: _requeue(job)
    if scheme and JOB_VARIABLE in os.environ:
        return lambda: _submit_again(os.environ[JOB_VARIABLE])
    where = "PBS lets no user put a running job back" if scheme else "this is no job"
    raise ConfigError(
        f"--resubmit: {where}", hint="--resubmit-with 'qsub job.pbs' runs any command when rows are left"
    )


def _requeue(job: str) -> str:
    """Put this very job back into the queue: with the same script, options and id."""
    from aegis.schedulers.transport import Here  # noqa: PLC0415 - start-up time

    done = Here(os.environ).run(["scontrol", "requeue", job], repeatable=False)
    if done.code:
        raise SiteError(
            f"slurm://{job} is not put back into the queue: {(done.err or done.out).strip()}",
            hint="submit it with `sbatch --requeue`, or use --resubmit-with 'sbatch ...'",
        )
    return f"slurm://{job} is put back into the queue"


def _submit_again(job: str) -> str:
    """Submit the job of this deployment once more: PBS lets no user put a running one back."""
    from aegis.fleet.successors import submit_again  # noqa: PLC0415 - start-up time

    return f"queued again as {submit_again(job, os.environ)}"


def _run_command(command: str) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise SiteError(f"--resubmit-with: `{command}` failed with exit code {done.returncode}")
    said = done.stdout.decode("utf-8", "replace").strip()
    return f"queued again: {said or command}"
