"""Comparing what the stand-in says with what a real PBS said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aegis.schedulers.pbs.queue import decode

if TYPE_CHECKING:
    from aegis.schedulers.transport import Done

FOLDER = Path(__file__).parents[2] / "fixtures" / "pbs"
# Values that must be the same, word for word.
SAME = (
    *("Job_Name", "job_state", "queue", "Account_Name", "Checkpoint", "exec_vnode", "Hold_Types"),
    *("Join_Path", "Keep_Files", "Mail_Points", "Priority", "Rerunable", "Resource_List", "substate"),
    *("run_count", "Stageout_status", "Exit_status", "array", "array_state_count", "array_index", "project"),
    *("array_indices_submitted", "array_indices_remaining", "server", "Submit_Host"),
)


def recorded(name: str, suffix: str) -> str:
    file = FOLDER / f"{name}.{suffix}"
    return file.read_bytes().decode("utf-8", errors="replace") if file.exists() else ""


def plain(text: str) -> str:
    """Return a text without what differs from run to run: ids, dates, slots of a node."""
    text = re.sub(r"\b\d+(\[\d*\])?(?=\.aurora-pbs)", r"N\1", text)
    text = re.sub(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) \w{3} [ \d]\d( at)? [\d:]+( \d{4})?", "DATE", text)
    text = re.sub(r'"(timestamp|last_\w+_time|history_timestamp)": ?\d+', r'"\1":T', text)
    text = re.sub(r"job killed: walltime \d+ exceeded limit \d+", "job killed: walltime", text)
    return re.sub(r"(?<=n0)/\d+", "/S", text)


def same_answer(done: Done, name: str) -> None:
    """Compare exit code, complaints and, where it is JSON, what stands in it."""
    assert done.code == int(recorded(name, "rc")), done
    complaints = recorded(name, "err").partition("usage:")[0]
    assert plain(done.err.partition("usage:")[0]) == plain(complaints)
    expected = recorded(name, "out")
    if expected.startswith("{"):
        assert plain(json.dumps(shape(decode(done.out)))) == plain(json.dumps(shape(decode(expected))))
    else:
        assert plain(done.out) == plain(expected)


def shape(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer with its jobs reduced to what must be the same."""
    jobs = answer.get("Jobs", {})
    return {**answer, **({"Jobs": {name: view(job) for name, job in jobs.items()}} if jobs else {})}


def view(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "keys": [name for name in job if name != "session_id"],  # comes a moment later
        "used": list(job.get("resources_used", {})),
        "variables": [name for name in job["Variable_List"] if name.startswith("PBS_O_")],
        "asked": job["Variable_List"]["PBS_O_QUEUE"],
        "comment": plain(job.get("comment", "")).rstrip(),
        **{name: job[name] for name in SAME if name in job},
    }


def same_job(job: dict[str, Any], name: str, number: str = "") -> None:
    """Compare a job with one of a recording."""
    jobs = decode(recorded(name, "out"))["Jobs"]
    expected = next(each for key, each in jobs.items() if key.startswith(number))
    found = view({key: value for key, value in job.items() if key != "Job_Id"})
    assert found == view(expected)


def same_job_state(job: dict[str, Any], name: str) -> None:
    """Compare state, substate, hold and comment only."""
    (expected,) = decode(recorded(name, "out"))["Jobs"].values()
    for key in ("job_state", "substate", "Hold_Types"):
        assert job[key] == expected[key]
    assert plain(job["comment"]) == plain(expected["comment"])
