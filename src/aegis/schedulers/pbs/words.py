"""What PBS knows of a job, in the words and states of Aegis; every letter, substate and code has an answer."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from aegis.schedulers.base import JobStatus
from aegis.schedulers.pbs.attributes import Job, hosts, log_of, seconds
from aegis.spec.walltime import format_walltime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from aegis.runs import JobState
    from aegis.schedulers.pbs.queue import JobId

# Substates and exit codes as in PBS's own table of them.
NORMAL, TERMINATED, FAILED = 92, 91, 93
STAGING_IN = {11, 14, 15, 16}
STAGE_IN_FAILED = 37
ON_DEPENDENCY = 22
PRERUN, PROVISIONING = 41, 71
RERUNNING = {60, 61, 62, 63}
WALLTIME, NODE_FAILED, OUT_OF_MEMORY = -29, -20, -27
SIGNALLED = 256  # and above: PBS itself saw the signal; 128 and above: the shell did

NODES_WANTED = re.compile(r"not enough free nodes|insufficient amount of resource", re.IGNORECASE)
BY_WHOM = re.compile(r"terminated by (\S+)$")
HOLDS = {
    "u": "held by its user: qrls releases it",
    "o": "held by an operator",
    "s": "held by PBS",
    "p": "held for a bad password",
}
REFUSED = "PBS could not start it"
ENDED_BY_PBS = {
    -1: REFUSED,
    -2: REFUSED,
    -3: f"{REFUSED}, after several tries",
    -4: "the PBS daemon of its node was started anew",
    -5: "the PBS daemon of its node was started anew",
    -6: "the PBS daemon of its node was started anew",
    -7: "it could not be started from its checkpoint",
    -10: "its user is not known on its node",
    -11: "it was put back into the queue",
    -12: "it was ended after a checkpoint",
    -13: "its user's password was refused",
    -14: "a node failed: it was put back into the queue",
    -15: "it was put back into the queue, to go on from its checkpoint",
    -16: "a hook of the site refused to start it for now",
    -17: "a hook of the site refused to start it",
    -18: "a hook of the site put it back into the queue",
    -19: "a hook of the site deleted it",
    NODE_FAILED: "its first node failed",
    -21: "the security check of its node failed",
    -22: "a hook of the site failed",
    -23: "it has no Kerberos ticket",
    -24: "killed: it used more CPUs than it asked for",
    -25: "killed: it used more CPUs than it asked for",
    -26: "killed: it used more virtual memory than it asked for",
    OUT_OF_MEMORY: "killed: it used more memory than it asked for",
    -28: "killed: it used more CPU time than it asked for",
    -30: "its nodes could not be joined to one job",
}
ENDED_WITH = {
    126: "a command of its script may not be run",
    127: "a command of its script was not found",
    137: "out of memory is the usual cause",
    254: "PBS could not run its shell",
}


class Verdict(Struct, frozen=True):
    """What is made of it."""

    state: JobState
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None


def status(job_id: JobId, attributes: Mapping[str, Any]) -> JobStatus:
    """Return what PBS knows of a job."""
    job = Job(attributes)
    letter = job.text("job_state")
    verdict = STATES[letter](job) if letter in STATES else Verdict("UNKNOWN", f"PBS calls its state {letter}")
    runs = job.number("run_count") or 0
    over = letter in {"F", "X"}
    return JobStatus(
        state=verdict.state,
        reason=verdict.reason,
        word=letter,
        exit_code=verdict.exit_code,
        signal=verdict.signal,
        nodes=hosts(job.text("exec_host")),
        submitted=job.moment("ctime"),
        started=job.moment("stime"),
        ended=(job.moment("obittime") or job.moment("history_timestamp") or job.moment("mtime"))
        if over
        else None,
        walltime=seconds(job.part("Resource_List").text("walltime")),
        restarts=runs if verdict.state == "PENDING" else max(0, runs - 1),
        log=log_of(job, job_id),
        name=job.text("Job_Name"),
    )


# ------------------------------------------------------------------------------------------------ before it runs


def _queued(job: Job) -> Verdict:
    what, _, why = job.comment.partition(": ")
    if what == "Can Never Run":
        reason = f"can never run: {why}"
    elif job.number("substate") in STAGING_IN:
        reason = "waits for its files to be copied to its nodes"
    elif what == "Not Running":
        reason = f"waits for free nodes: {why}" if NODES_WANTED.search(why) else f"waits: {why}"
    else:
        reason = f"waits: {job.comment}" if job.comment else "waits: PBS has not looked for nodes yet"
    if job.exit_status == NODE_FAILED:
        reason = f"a node failed: it waits to run again; {reason}"
    elif job.number("run_count"):
        reason = f"it was put back into the queue and waits to run again; {reason}"
    asked, queue = job.part("Variable_List").text("PBS_O_QUEUE"), job.text("queue")
    return Verdict("PENDING", f"{reason} (queue {queue})" if asked != queue and queue else reason)


def _held(job: Job) -> Verdict:
    depend = job.text("depend")
    if depend and job.number("substate") in {ON_DEPENDENCY, None}:
        return Verdict("PENDING", f"held: it waits for another job ({_dependency(depend)})")
    if job.number("substate") == STAGE_IN_FAILED:
        return Verdict("PENDING", "held: its files could not be copied to its nodes")
    reason = ", ".join(words for letter, words in HOLDS.items() if letter in job.text("Hold_Types")) or "held"
    return Verdict("PENDING", f"{reason}; {job.comment}" if job.comment else reason)


def _waiting(job: Job) -> Verdict:
    if job.number("substate") == STAGE_IN_FAILED:
        return Verdict("PENDING", "its files could not be copied to its nodes: PBS tries again later")
    start = job.moment("Execution_Time")
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(start)) if start is not None else ""
    return Verdict("PENDING", f"waits for its start time {when}".rstrip())


def _transit(job: Job) -> Verdict:
    del job
    return Verdict("PENDING", "on its way to another queue or server")


def _dependency(depend: str) -> str:
    """Return `afterok:1016` of `afterok:1016.server@server`."""
    return re.sub(r"(\d+(?:\[\d*\])?)\.[\w.@-]+", r"\1", depend)


# ------------------------------------------------------------------------------------------------ while it runs


def _running(job: Job) -> Verdict:
    if whom := BY_WHOM.search(job.comment):
        return Verdict("LAUNCHING", f"deleted by {_who(job, whom[1])}: it is ending")
    substate = job.number("substate")
    if substate in RERUNNING:
        return Verdict("LAUNCHING", "it is being put back into the queue")
    reason = {PRERUN: "PBS is starting it", PROVISIONING: "its nodes are being prepared"}.get(
        substate or 0, ""
    )
    return Verdict("LAUNCHING", reason)


def _ending(job: Job) -> Verdict:
    return replace(_running(job), reason="it is ending")


def _suspended(job: Job) -> Verdict:
    reason = f"suspended: {job.comment}" if job.comment else "suspended: it keeps its nodes and stands still"
    return Verdict("LAUNCHING", reason)


def _began(job: Job) -> Verdict:
    return Verdict("LAUNCHING", f"an array of jobs: {job.text('array_state_count')}".rstrip(": "))


# ------------------------------------------------------------------------------------------------ after


def _finished(job: Job) -> Verdict:
    code = job.exit_status
    if code is not None and code < 0:
        return Verdict("FAILED", _own_reason(job, code))
    if _deleted(job, code):
        return _deletion(job, code)
    if code is None:
        return Verdict("FAILED", _without_code(job))
    if code == 0 and job.number("substate") == FAILED:
        return Verdict("FAILED", "a node of it was lost")  # its code is no success
    verdict = _by_code(code)
    if job.text("Stageout_status") == "0":
        lost = f"PBS could not deliver its output to {job.text('Output_Path')}"
        return replace(verdict, reason="; ".join(filter(None, (verdict.reason, lost))))
    return verdict


def _own_reason(job: Job, code: int) -> str:
    if code == WALLTIME:
        limit = seconds(job.part("Resource_List").text("walltime"))
        return "killed at its walltime" + (f" of {format_walltime(limit)}" if limit else "")
    return ENDED_BY_PBS.get(code, f"PBS ended it with its code {code}")


def _deleted(job: Job, code: int | None) -> bool:
    """Tell whether it was deleted; a script that ends by SIGTERM of its own is told from that by the comment alone."""
    by_term = code == SIGNALLED + signal.SIGTERM and not job.comment.endswith("and failed")
    return job.number("substate") == TERMINATED or by_term


def _deletion(job: Job, code: int | None) -> Verdict:
    whom = BY_WHOM.search(job.comment)
    by = f" by {_who(job, whom[1])}" if whom else ""
    waited = "" if job.text("stime") or job.text("exec_host") else " while it waited"
    # the user's own wish is no failure
    state: JobState = "FAILED" if whom and whom[1].partition("@")[0] != job.owner else "SHUTDOWN"
    end = _by_code(code) if code is not None else Verdict(state)
    return replace(end, state=state, reason=f"deleted{by}{waited}")


def _without_code(job: Job) -> str:
    if depend := job.text("depend"):
        return f"the job that it waited for failed or is unknown ({_dependency(depend)})"
    return f"it ended before it ran: {job.comment}" if job.comment else "it ended before it ran"


def _by_code(code: int) -> Verdict:
    if code == 0:
        return Verdict("SHUTDOWN", "", 0)
    if code > SIGNALLED:
        number = code - SIGNALLED
        return Verdict("FAILED", f"ended by {_signal(number)}", signal=number)
    hint = f": {ENDED_WITH[code]}" if code in ENDED_WITH else ""
    number = code - 128
    if number in {each.value for each in signal.Signals}:
        return Verdict("FAILED", f"ended by {_signal(number)} (exit code {code}){hint}", code, number)
    return Verdict("FAILED", f"ended with exit code {code}{hint}", code)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _moved(job: Job) -> Verdict:
    del job
    return Verdict("UNKNOWN", "it was moved to another PBS server: ask there")


def _who(job: Job, whom: str) -> str:
    user = whom.partition("@")[0]
    return "its user" if user == job.owner else user


STATES: dict[str, Callable[[Job], Verdict]] = {
    "B": _began,
    "E": _ending,
    "F": _finished,
    "H": _held,
    "M": _moved,
    "Q": _queued,
    "R": _running,
    "S": _suspended,
    "T": _transit,
    "U": _suspended,
    "W": _waiting,
    "X": _finished,
}
