"""What is true of a job, from the scheduler's word, the job's own manifest and its servers; pure.

The scheduler knows whether a job waits, runs or has ended, and who or what ended it. The manifest knows why servers failed.
Only servers know that they serve. Absence from queue and accounting is no success, and silence is no news.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.runs import ENDED
from aegis.schedulers.base import notice
from aegis.spec.walltime import format_age, format_walltime

if TYPE_CHECKING:
    from aegis.runs import JobState, Manifest
    from aegis.schedulers.base import JobStatus

YOUNG_SECONDS = 60.0  # a scheduler may need so long to know a job that it has just accepted
PLAIN_WORDS = {"", "COMPLETED", "COMPLETING", "FAILED", "F", "E", "X"}  # ended by itself, well or badly
FORGOTTEN_SECONDS = 30 * 86400.0  # no job lasts so long
FRESH_SECONDS = 5.0  # an answer so young is no older than what the manifest says
AT_WALLTIME = "at its walltime"  # in the words of every scheduler, and of the job's own head
HANDING_OVER = "handing over to"  # in the words of a head whose servers finish what they have
SIGNALLED = "shut down"  # in the words of the head, which does not know who sent the signal
EARLY_SECONDS = 75.0  # Slurm may send its notice up to a minute early
SIGNALS = 128  # exit codes from here on tell of a signal
STILL_THERE = "RUNNING"  # a job that lost its head has failed, and keeps its nodes until it is cancelled


class Evidence(Struct, frozen=True, kw_only=True):
    """All that is known of one job."""

    manifest: Manifest
    status: JobStatus | None  # the scheduler's last word; None: it knows no such job
    now: float  # epoch seconds
    words: str = ""  # the last of its log, where it has ended and could not note why
    silence: str = ""  # why the scheduler does not answer at present
    healthy: int | None = None  # servers that answer; None: none was asked
    trouble: str = ""  # what servers, or a silent registry, make of it
    local: bool = False  # the manifest is the accounting


class Verdict(Struct, frozen=True):
    """What a user is told."""

    state: JobState
    reason: str = ""
    final: bool = False  # nothing about it can change


def judge(known: Evidence) -> Verdict:
    """Return what is true of a job."""
    manifest, status = known.manifest, known.status
    if manifest.state in ENDED and (manifest.accounted or known.local):
        return Verdict(manifest.state, manifest.reason, final=True)
    if known.silence or status is None or status.state == "UNKNOWN":
        return _unsure(known)
    if status.state in ENDED:
        return _ended(known, status)
    if status.state == "PENDING" and not known.healthy:
        return _pending(known, status)
    return _running(known, status)


def _unsure(known: Evidence) -> Verdict:
    """Judge where the scheduler is silent, or says what nobody understands."""
    manifest, status = known.manifest, known.status
    if manifest.state in ENDED:
        final = not known.silence and status is None
        return Verdict(manifest.state, manifest.reason, final=final)
    if known.healthy:
        return Verdict("READY", _silence(known) if known.silence else "")
    if known.silence:
        return Verdict("UNKNOWN", _silence(known))
    if status is not None:
        said = f"the scheduler says {status.word}" if status.word else "the scheduler does not say how it is"
        return Verdict("UNKNOWN", status.reason or said)
    if known.now - manifest.created < YOUNG_SECONDS:
        return Verdict("UNKNOWN", "the scheduler does not know the job yet")
    what = "it was refused later, or" if manifest.state == "PENDING" else "it was killed, and"
    return Verdict(
        "FAILED",
        f"the job is gone: neither the queue nor the accounting of this cluster knows it; {what} its record is lost",
        # clusters that share a home know nothing of each other's jobs: there it may still run
        final=known.now - manifest.created > FORGOTTEN_SECONDS and not known.healthy,
    )


def _silence(known: Evidence) -> str:
    """Say since when the scheduler is silent, and what it said last."""
    status = known.status
    if status is None or status.state == "UNKNOWN":
        return f"the scheduler does not answer: {known.silence}"
    return f"the scheduler does not answer; {format_age(status.age)} ago it said: {said(status)}"


def said(status: JobStatus) -> str:
    """Return a scheduler's word on a job as people say it."""
    words = {"PENDING": "waiting", "LAUNCHING": "running", "READY": "running", "SHUTDOWN": "ended"}
    word = words.get(status.state, status.state.lower())
    return f"{word} ({status.reason})" if status.reason else word


def _pending(known: Evidence, status: JobStatus) -> Verdict:
    manifest = known.manifest
    if known.local or manifest.state == "PENDING":
        return Verdict("PENDING", status.reason)
    if status.restarts or status.age < FRESH_SECONDS:
        again = "back in the queue after a first run"
        return Verdict("PENDING", f"{again}: {status.reason}" if status.reason else again)
    return Verdict(manifest.state, manifest.reason)  # it has started, or ended, since the scheduler said so


def _running(known: Evidence, status: JobStatus) -> Verdict:
    manifest = known.manifest
    if manifest.state in ENDED:
        if status.restarts and status.started and manifest.ended and status.started > manifest.ended:
            return Verdict("LAUNCHING", "started again by the scheduler")
        return Verdict(manifest.state, manifest.reason)  # the scheduler will notice
    doing = (
        manifest.reason if manifest.state in {"LAUNCHING", "READY"} else ""
    )  # staging, its own work; how far
    if known.healthy is None:  # nobody was asked, or there is nobody yet
        stranger = "" if manifest.run_dir else "there is no manifest of aegis: what it serves is not known"
        if manifest.state == "READY":
            return Verdict("READY", doing or status.reason or stranger)
        return Verdict("LAUNCHING", doing or status.reason or stranger)
    if known.healthy or doing.startswith(HANDING_OVER):
        return Verdict("READY", known.trouble or doing)
    again = "no instance is healthy at present" if manifest.ready else ""
    return Verdict("LAUNCHING", doing or known.trouble or again or status.reason)


def _ended(known: Evidence, status: JobStatus) -> Verdict:
    """Join the scheduler's verdict and the job's own: who knows the deeper cause speaks first."""
    manifest = known.manifest
    noted = manifest.state in ENDED
    own = manifest.reason if noted else known.words
    plain = _is_plain(status)
    final = status.word != STILL_THERE
    if AT_WALLTIME in status.reason or (plain and AT_WALLTIME in own):
        return _at_walltime(manifest, status.reason if AT_WALLTIME in status.reason else own)
    if plain and own == SIGNALLED and _was_told(manifest, status):
        return _at_walltime(manifest, f"ended {AT_WALLTIME} of {format_walltime(status.walltime or 0)}")
    if own and (plain or own == status.reason):
        return Verdict(manifest.state if noted else status.state, own, final)
    if own and manifest.state == status.state == "FAILED":
        return Verdict("FAILED", f"{status.reason}; the job says: {own}", final)
    return Verdict(status.state, status.reason or own or ended_with(status), final)


def _at_walltime(manifest: Manifest, reason: str) -> Verdict:
    """A job that served until its time was up did what it was asked for."""
    if manifest.ready is not None:
        return Verdict("SHUTDOWN", reason, final=True)
    return Verdict("FAILED", f"{reason}, before any server was ready", final=True)


def _was_told(manifest: Manifest, status: JobStatus) -> bool:
    """Tell whether the signal that ended a job was the scheduler's notice: who cancels leaves another word."""
    ended = manifest.ended or status.ended
    if manifest.job.startswith("local://") or not (status.walltime and status.started and ended):
        return False
    return ended - status.started > status.walltime - notice(status.walltime) - EARLY_SECONDS


def _is_plain(status: JobStatus) -> bool:
    """Tell whether a job ended by itself: nobody and nothing ended it."""
    if status.word not in PLAIN_WORDS or status.signal:
        return False
    if status.exit_code is None:
        return not status.reason
    return 0 <= status.exit_code < SIGNALS


def ended_with(status: JobStatus) -> str:
    """Say how a job ended of which no more is known."""
    return f"ended with exit code {status.exit_code}" if status.exit_code is not None else "ended"
