"""What Slurm's words for a job's state mean, and how one has ended, as people say it; pure and total."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.schedulers.base import JobStatus
from aegis.schedulers.slurm.reasons import waiting
from aegis.spec.walltime import format_walltime

if TYPE_CHECKING:
    from aegis.runs import JobState
    from aegis.schedulers.slurm.queue import Row

NO_OUTPUT = 53  # the "signal" of a job whose output file could not be opened
SHELL_SIGNALS = 128  # exit codes above it are signals, as a shell reports them
ENDED_WITH = {126: "a command may not be executed", 127: "a command was not found"}
BY_WHOM = re.compile(r"CANCELLED by (\d+)")

# Every state and flag that Slurm 22 to 25 prints for a job, and what it is about; the reason is found elsewhere where none is given.
STATES: dict[str, tuple[JobState, str]] = {
    "PENDING": ("PENDING", ""),
    "CONFIGURING": ("PENDING", "its nodes are made ready"),
    "EXPEDITING": ("PENDING", "put back into the queue, and next to start"),
    "POWER_UP_NODE": ("PENDING", "its nodes are powered up"),
    "REQUEUED": ("PENDING", "put back into the queue"),
    "REQUEUE_FED": ("PENDING", "put back into the queue by the federation"),
    "REQUEUE_HOLD": ("PENDING", "put back into the queue and held: `scontrol release` lets it go"),
    "RESV_DEL_HOLD": ("PENDING", "held: its reservation was deleted"),
    "SPECIAL_EXIT": ("PENDING", "put back into the queue and held by the site, for how it ended"),
    "RUNNING": ("LAUNCHING", ""),
    "COMPLETING": ("LAUNCHING", "it is ending"),
    "RESIZING": ("LAUNCHING", "its number of nodes changes"),
    "SIGNALING": ("LAUNCHING", "it is sent a signal"),
    "STAGE_OUT": ("LAUNCHING", "it is ending: files are copied from the burst buffer"),
    "STOPPED": ("LAUNCHING", "stopped: it keeps its nodes and stands still"),
    "SUSPENDED": ("LAUNCHING", "suspended: it stands still"),
    "UPDATE_DB": ("LAUNCHING", ""),
    "BOOT_FAIL": ("FAILED", "its nodes could not be started"),
    "CANCELLED": ("SHUTDOWN", "cancelled"),
    "COMPLETED": ("SHUTDOWN", ""),
    "DEADLINE": ("FAILED", "its deadline has passed"),
    "FAILED": ("FAILED", "it failed"),
    "LAUNCH_FAILED": ("FAILED", "it could not be started on its nodes"),
    "NODE_FAIL": ("FAILED", "a node failed"),
    "OUT_OF_MEMORY": ("FAILED", "out of memory"),
    "PREEMPTED": ("FAILED", "preempted: another job took its nodes"),
    "RECONFIG_FAIL": ("FAILED", "its nodes could not be set up for it"),
    "TIMEOUT": ("FAILED", "killed at its walltime"),
    "REVOKED": ("UNKNOWN", "it runs on another cluster of the federation: ask there"),
}
HELD = {"PENDING", "SUSPENDED"}  # whose reason says more


class End(Struct, frozen=True):
    """How a job ended."""

    state: JobState
    reason: str
    exit_code: int | None = None
    signal: int | None = None


def is_ended(word: str) -> bool:
    """Tell whether a job in this state has ended."""
    return STATES.get(plain(word), ("", ""))[0] in {"SHUTDOWN", "FAILED"}


def plain(word: str) -> str:
    """Return a state without who brought it about; `CANCELLED+` and the like are completed."""
    base = word.strip().partition(" ")[0]
    if base.endswith("+"):
        meant = [state for state in STATES if state.startswith(base[:-1])]
        return meant[0] if len(meant) == 1 else base
    return base


def status(row: Row) -> JobStatus:
    """Return what Slurm's word on a job means."""
    base = plain(row.word)
    state, words = STATES.get(base, ("UNKNOWN", f"Slurm says {row.word}, which is not known here"))
    end = End(state, words)
    if base in HELD:
        end = End(state, waiting(row.reason) or words)
    elif is_ended(base):
        end = _ended(row, base, end)
    return JobStatus(
        state=end.state,
        reason=end.reason,
        word=row.word,
        exit_code=end.exit_code,
        signal=end.signal,
        nodes=row.hosts,
        submitted=row.submitted,
        started=row.started if end.state != "PENDING" else None,  # before, it is a guess
        ended=row.ended if end.state in {"SHUTDOWN", "FAILED"} else None,
        walltime=row.walltime,
        restarts=row.restarts,
        log=row.log,
        name=row.name,
    )


def _ended(row: Row, base: str, end: End) -> End:
    match base:
        case "COMPLETED":
            return End(end.state, "", row.exit_code)
        case "FAILED":
            return _failed(row, end)
        case "CANCELLED":
            return _cancelled(row)
    return End(end.state, end.reason + _detail(row, base))


def _detail(row: Row, base: str) -> str:
    match base:
        case "TIMEOUT" if row.walltime:
            return f" of {format_walltime(row.walltime)}"
        case "NODE_FAIL" if row.hosts and "+" not in row.id:  # of another component, it may be
            several = "," in row.hosts or "[" in row.hosts
            return f": {'one of ' if several else ''}{row.hosts}"
        case "OUT_OF_MEMORY" if row.memory:
            return f": it took more than the {row.memory} that it asked for"
    return ""


def _failed(row: Row, end: End) -> End:
    code, number = row.exit_code, row.signal
    if number == NO_OUTPUT:
        where = f": {row.log}" if row.log else ""
        return End("FAILED", f"it did not start: its output file could not be opened{where}")
    if number:
        return End("FAILED", f"killed by signal {number}{_name(number)}", signal=number)
    if code:
        return End("FAILED", f"ended with exit code {code}{_meaning(code)}", code)
    if row.reason == "JobLaunchFailure":
        return End("FAILED", "it could not be started on its nodes")
    return end


def _meaning(code: int) -> str:
    if words := ENDED_WITH.get(code):
        return f": {words}"
    number = code - SHELL_SIGNALS
    return f", which is signal {number}{_name(number)}" if _name(number) else ""


def _cancelled(row: Row) -> End:
    waited = "" if row.hosts else " while it waited"
    match = BY_WHOM.match(row.word)
    if not match:
        return End("SHUTDOWN", f"cancelled{waited}")
    if match[1] == row.owner:
        return End("SHUTDOWN", f"cancelled by its user{waited}")
    root = " (root)" if match[1] == "0" else ""
    return End("FAILED", f"cancelled by user {match[1]}{root}{waited}")


def _name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""
