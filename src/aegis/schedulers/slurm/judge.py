"""What queue and accounting together say of a job; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from aegis.schedulers.base import JobStatus
from aegis.schedulers.slurm.queue import holds
from aegis.schedulers.slurm.words import is_ended, plain, status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.schedulers.slurm.queue import JobId, Row


def judge(job: JobId, queue: Mapping[str, Row], records: Mapping[str, Row], silence: str) -> JobStatus | None:
    """Return what queue and accounting together say of a job; None where neither knows it."""
    row, noted = queue.get(job.text), records.get(job.text)
    if row is None:
        if noted is None:
            reason = f"it has left the queue, and accounting does not answer: {silence}"
            return JobStatus(state="UNKNOWN", reason=reason) if silence else None
        if not is_ended(noted.word):
            reason = f"accounting says {noted.word}, but it is not in the queue"
            return JobStatus(state="UNKNOWN", reason=reason, word=noted.word)
        return status(noted)
    if noted is not None and plain(noted.word) == plain(row.word):
        # it knows who cancelled, but comes seconds late and at first knows little else: not even whose the job is
        row = replace(row, word=noted.word, memory=noted.memory, owner=row.owner or noted.owner)
    leader = queue.get(f"{row.number}+0") if row.is_led else None
    if leader and plain(leader.word) == "COMPLETING" and plain(row.word) == "FAILED":
        return status(replace(row, word=leader.word))  # why, shows when the script of the job has ended
    lost = _lost_follower(row, leader) if row.is_led else _lost_head(row)
    return replace(status(row), state="FAILED", reason=lost) if lost else status(row)


def _lost_head(row: Row) -> str:
    """Return why a job that seems to run does not: Slurm lets it run on when the node of its head has failed."""
    host = row.batch_host
    if plain(row.word) != "RUNNING" or not row.hosts or host in {"", "n/a"} or holds(row.hosts, host):
        return ""
    return f"its first node {host} failed, and with it what holds it together: cancel it"


def _lost_follower(row: Row, leader: Row | None) -> str:
    """Return why a component has failed with the first one, on whose first node its head ran."""
    word = plain(row.word)
    if leader and plain(leader.word) == "NODE_FAIL" and word in {"RUNNING", "FAILED"}:
        return "a node of its job failed, and Slurm ended the first component, which holds all together"
    if word == "RUNNING" and (leader is None or is_ended(leader.word)):
        return "the first component of its job has ended, and with it what holds it together: cancel it"
    return ""
