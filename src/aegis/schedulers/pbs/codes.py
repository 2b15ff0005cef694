"""What the exit codes of PBS mean: its error numbers, of which a shell keeps the rest by 256."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.errors import AegisError, NotFoundError, SiteError
from aegis.schedulers.base import SchedulerUnavailable

if TYPE_CHECKING:
    from aegis.schedulers.transport import Done

UNKNOWN_JOB = 153
FINISHED = 35
ENDING = 237  # it is being deleted already

AWAY = {
    104: "is busy",
    162: "does not answer",
    185: "takes no further connections",
    186: "is not there",
    212: "is shutting down",
    255: "does not answer",
}

HINTS = {
    32: "a hook of the site refuses it",
    38: "you have as many jobs as this queue or server allows",
    39: "your jobs ask for as much as this queue or server allows",
    65: "a hook of the site refuses it",
    71: "the job script is larger than the site allows",
    159: "the site does not allow this to you",
    160: "the server after the `@` of --queue is not there",
    166: "one of the values has not the form that PBS expects: the walltime is HH:MM:SS",
    170: "`qstat -Q` lists the queues; choose one with --queue",
    173: "this queue takes no jobs at present; `qstat -Q` lists the others",
    174: "this queue takes jobs from a routing queue only, or not from you; choose another with --queue",
    175: "PBS does not run jobs of this user; root cannot submit",
    187: "this site does not have that resource; leave it out, or see its guide for its own name",
    188: "its walltime or nodes are outside the limits of the queue: `qstat -Qf QUEUE` shows them",
    191: "no queue behind this routing queue takes so many nodes or such a walltime",
    198: "the queue is full, or you have as many jobs in it as you may",
    200: "a value is above what the site allows",
    201: "the site does not know this account; choose another with --account",
    222: "the daemon of its node cannot be reached; `qdel -W force` frees the job, but its processes may live on there",
}


def trouble(command: str, what: str, done: Done) -> AegisError:
    """Return the error that says what a command of PBS refused.

    Args:
        command: its name.
        what: that it was asked for, as the start of a sentence.
        done: what it answered.
    """
    said = words(command, done)
    if done.code in AWAY or ("cannot connect to server" in done.err and done.code not in HINTS):
        state = AWAY.get(done.code, "does not answer")
        return SchedulerUnavailable(f"the PBS server {state}: {said}", hint="try again later")
    if done.code == UNKNOWN_JOB:
        return NotFoundError(f"{what}: {said}")
    return SiteError(f"{what}: {said}", hint=HINTS.get(done.code))


def words(command: str, done: Done) -> str:
    """Return what a command said on its standard error, without its name and its usage."""
    lines = []
    for line in done.err.splitlines():
        if line.startswith("usage:"):
            break
        text = line.strip().removeprefix(f"{command}:").strip()
        if text and text not in lines:
            lines.append(text)
    return "; ".join(lines) or f"{command} ended with exit code {done.code}"
