"""What is made of a job's attributes: every recording, every state and code, and anything else."""

from __future__ import annotations

import calendar
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.runs import ENDED
from aegis.schedulers.pbs.attributes import Job, hosts, seconds
from aegis.schedulers.pbs.queue import JobId, answer
from aegis.schedulers.pbs.words import ENDED_BY_PBS, status

from .pbs_recordings import SERVER, json_recordings, recorded

if TYPE_CHECKING:
    from aegis.schedulers.base import JobStatus

LETTERS = "BEFHMQRSTUWX"
# As PBS numbers them: from transit to moved.
SUBSTATES = (
    *(0, 1, 2, 3, 10, 11, 13, 14, 15, 16, 20, 21, 22, 30, 37, 41, 42, 43, 45, 50, 51, 52, 53, 54),
    *(56, 57, 58, 59, 60, 61, 62, 63, 69, 70, 71, 72, 91, 92, 93, 94, 153),
)


def told(name: str, number: str | None = None) -> dict[str, Any]:
    """Return the state, reason, exit code and signal that a recording leads to."""
    said = answer(recorded(name))
    assert said
    job_id, attributes = said.find(JobId(number)) if number else next(iter(said.jobs.values()))  # type: ignore[misc]
    found = status(job_id, attributes)
    return {
        "state": found.state,
        "reason": found.reason,
        "exit_code": found.exit_code,
        "signal": found.signal,
        "word": found.word,
    }


def verdict(
    state: str, reason: str, exit_code: int | None = None, signal: int | None = None, word: str = "F"
) -> dict[str, Any]:
    return {"state": state, "reason": reason, "exit_code": exit_code, "signal": signal, "word": word}


AT_WALLTIME = verdict("FAILED", "killed at its walltime of 00:00:20")
BY_USER = verdict("SHUTDOWN", "deleted by its user", None, 15)
RECORDED = {
    "qstat_f_json_running": verdict("LAUNCHING", "", word="R"),
    "qstat_x_f_json_finished": verdict("SHUTDOWN", "", 0),
    "qstat_x_f_json_exit3": verdict("FAILED", "ended with exit code 3", 3),
    "qstat_x_f_json_selfkill": verdict(
        "FAILED", "ended by SIGKILL (exit code 137): out of memory is the usual cause", 137, 9
    ),
    "qstat_x_f_json_selfterm": verdict("FAILED", "ended by SIGTERM (exit code 143)", 143, 15),
    "qstat_x_f_json_notfound": verdict(
        "FAILED", "ended with exit code 127: a command of its script was not found", 127
    ),
    "qstat_x_f_json_badshell": verdict(
        "FAILED", "ended with exit code 254: PBS could not run its shell", 254
    ),
    "qstat_x_f_json_badout": verdict(
        "SHUTDOWN",
        "PBS could not deliver its output to aurora-uan-0009.hostmgmt.cm.lab.test:/nonexistent/dir/",
        0,
    ),
    "qstat_x_f_json_walltime_trap": AT_WALLTIME,
    "qstat_x_f_json_walltime_notrap": AT_WALLTIME,
    "qstat_x_f_json_walltime_graceful": AT_WALLTIME,
    "master/qstat_x_f_json_wt_notrap": AT_WALLTIME,
    "qstat_x_f_json_qdel_notrap": BY_USER,
    "qstat_x_f_json_qdel_graceful": BY_USER,
    "qstat_x_f_json_qdel_trap2node": BY_USER,
    "qstat_x_f_json_qdel_suppress": verdict("SHUTDOWN", "deleted", None, 15),
    "qstat_x_f_json_qdel_force": verdict("SHUTDOWN", "deleted by its user", 137, 9),
    "qstat_x_f_json_qdel_force_down_node": verdict("SHUTDOWN", "deleted"),
    "qstat_x_f_json_qdel_qsigterm": verdict("FAILED", "ended by SIGTERM", None, 15),
    "qstat_x_f_json_qdel_queued": verdict("SHUTDOWN", "deleted while it waited"),
    "master/qstat_x_f_json_qdel_graceful": verdict("SHUTDOWN", "deleted", None, 15),
    "master/qstat_x_f_json_qdel_notrap": BY_USER,
    "qstat_after_qdel_1": verdict("LAUNCHING", "deleted by its user: it is ending", word="R"),
    "qstat_x_f_json_held": verdict("PENDING", "held by its user: qrls releases it", word="H"),
    "qstat_f_json_held_after_qhold": verdict(
        "PENDING",
        "held by its user: qrls releases it; Job held by alice on Sat Nov 21 02:09:30 2026",
        word="H",
    ),
    "qstat_f_json_qhold_running": verdict("LAUNCHING", "", word="R"),
    "qstat_f_json_dep_held": verdict("PENDING", "held: it waits for another job (afterok:1016)", word="H"),
    "qstat_after_bad_depend": verdict(
        "FAILED", "the job that it waited for failed or is unknown (afterok:999999)"
    ),
    "qstat_x_f_json_impossible": verdict(
        "PENDING", "can never run: Not enough total nodes available", word="Q"
    ),
    "qstat_x_f_json_toomanycpus": verdict(
        "PENDING", "waits for free nodes: Insufficient amount of resource: ncpus", word="Q"
    ),
    "qstat_x_f_json_stopped": verdict("PENDING", "waits: Queue not started.", word="Q"),
    "qstat_f_json_queued": verdict(
        "PENDING", "waits for free nodes: Not enough free nodes available (queue small)", word="Q"
    ),
    "qstat_x_f_json_msdown_rerunable": verdict(
        "PENDING",
        "a node failed: it waits to run again; waits for free nodes: Insufficient amount of resource: vnode",
        word="Q",
    ),
    "qstat_x_f_json_msdown_norerun": verdict("FAILED", "its first node failed"),
    "qstat_x_f_json_after_node_fail_requeue": verdict("FAILED", "a node of it was lost"),
    "qstat_f_json_array": verdict(
        "LAUNCHING", "an array of jobs: Queued:0 Running:3 Exiting:0 Expired:0", word="B"
    ),
    "json_pitfall_json": verdict("PENDING", "held by its user: qrls releases it", word="H"),
    "master_qstat_x_json_pitfall": verdict("SHUTDOWN", "deleted while it waited"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_in_words(name: str) -> None:
    assert told(name) == RECORDED[name]


@pytest.mark.parametrize("name", json_recordings())
def test_every_recording_is_understood(name: str) -> None:
    done = recorded(name)
    said = answer(done)
    if done.code == 255:
        assert said is None
        return
    assert said
    assert bool(said.jobs) or bool(said.unknown) or bool(said.foreign) or bool(said.complaint)
    for job_id, attributes in said.jobs.values():
        found = status(job_id, attributes)
        assert found.state != "UNKNOWN"
        assert found.name
        assert found.submitted
        assert found.submitted > 1_795_000_000
        assert (found.ended is not None) == (found.state in ENDED)
        assert not found.reason.endswith((":", ";", " "))


def test_a_job_ends_as_its_start_time_says() -> None:
    found = status_of_recording("qstat_x_f_json_later")
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(calendar.timegm((2026, 11, 22, 0, 1, 0))))
    assert (found.state, found.reason) == ("PENDING", f"waits for its start time {when}")


def status_of_recording(name: str, number: str | None = None) -> JobStatus:
    said = answer(recorded(name))
    assert said
    known = said.find(JobId(number)) if number else next(iter(said.jobs.values()))
    assert known
    return status(*known)


def test_times_nodes_and_places() -> None:
    found = status_of_recording("qstat_x_f_json_finished")
    assert found.submitted == calendar.timegm((2026, 11, 21, 2, 2, 54))
    assert found.started == found.submitted
    assert found.ended == calendar.timegm((2026, 11, 21, 2, 3, 40))
    assert found.nodes == "x4102c5s2b0n0,x4102c5s3b0n0"
    assert found.walltime == 300
    assert found.log == "/home/alice/run/job1.o2"
    assert found.name == "job1"
    assert found.restarts == 0
    waits = status_of_recording("qstat_x_f_json_msdown_rerunable")
    assert (waits.restarts, waits.ended, waits.nodes) == (1, None, "")
    folder = status_of_recording("qstat_x_f_json_badout")
    assert folder.log == f"/nonexistent/dir/23.{SERVER}.OU"


def test_an_array_and_its_jobs() -> None:
    name = "qstat_x_t_f_json_array_done"
    assert told(name, "1015[]")["reason"] == "ended with exit code 1"
    assert told(name, "1015[0]")["state"] == "SHUTDOWN"
    assert told(name, "1015[2]")["reason"] == "ended with exit code 2"


# ------------------------------------------------------------------------------------------------ anything


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dictionaries(st.text(), st.text())
)
names = st.sampled_from(
    [
        *("job_state", "substate", "comment", "Exit_status", "Stageout_status", "Hold_Types", "run_count"),
        *("depend", "Variable_List", "Resource_List", "ctime", "stime", "obittime", "exec_host", "queue"),
        *("Output_Path", "Job_Name", "Job_Owner", "Execution_Time", "array_state_count", "walltime"),
    ]
)


@given(st.sampled_from(LETTERS), st.dictionaries(names, values))
def test_any_attributes_have_a_status(letter: str, attributes: dict[str, Any]) -> None:
    found = status(JobId("1"), {"job_state": letter, **attributes})
    assert found.state in {"PENDING", "LAUNCHING", "FAILED", "SHUTDOWN", "UNKNOWN"}


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("substate", SUBSTATES)
def test_every_state_and_substate_has_words(letter: str, substate: int) -> None:
    found = status(JobId("1"), {"job_state": letter, "substate": substate, "comment": "why"})
    expected = {
        **dict.fromkeys("BERSU", "LAUNCHING"),
        **dict.fromkeys("HQTW", "PENDING"),
        "M": "UNKNOWN",
    }
    if letter in "FX":
        assert found.state == ("SHUTDOWN" if substate == 91 else "FAILED")
    else:
        assert found.state == expected[letter]
    assert found.word == letter
    assert found.reason or letter == "R"


@pytest.mark.parametrize("code", [*range(-40, 0), 0, 1, 126, 127, 128, 137, 143, 254, 255, 265, 271, 300])
def test_every_exit_status_has_words(code: int) -> None:
    found = status(
        JobId("1"),
        {"job_state": "F", "substate": 92 if code == 0 else 93, "Exit_status": code, "comment": "and failed"},
    )
    assert found.state == ("SHUTDOWN" if code == 0 else "FAILED")
    assert bool(found.reason) == (code != 0)
    if code in ENDED_BY_PBS:
        assert found.reason == ENDED_BY_PBS[code]


def test_unknown_letters_are_shown() -> None:
    found = status(JobId("1"), {"job_state": "Z"})
    assert (found.state, found.word, found.reason) == ("UNKNOWN", "Z", "PBS calls its state Z")
    assert status(JobId("1"), {}).state == "UNKNOWN"


def test_who_deleted_a_job_makes_the_difference() -> None:
    job = {"job_state": "F", "substate": 91, "Exit_status": 271, "Job_Owner": "alice@login"}
    by_alice = status(JobId("1"), {**job, "comment": "Job run and terminated by alice@other", "stime": 1})
    assert (by_alice.state, by_alice.reason) == ("SHUTDOWN", "deleted by its user")
    by_root = status(JobId("1"), {**job, "comment": "Job run and terminated by root@srv", "stime": 1})
    assert (by_root.state, by_root.reason) == ("FAILED", "deleted by root")


def test_a_failed_node_is_told_while_it_waits_and_after() -> None:
    found = status(JobId("1"), {"job_state": "Q", "run_count": 2, "comment": "Not Running: Not enough x"})
    assert found.reason == "it was put back into the queue and waits to run again; waits: Not enough x"
    assert found.restarts == 2
    found = status(JobId("1"), {"job_state": "R", "run_count": 2})
    assert found.restarts == 1


def test_small_readers() -> None:
    assert hosts("a/0+b/0*12+a/1") == "a,b"
    assert hosts("") == ""
    assert [seconds(text) for text in ("01:00:00", "02:00", "90", "", "1:2:3:4", "x")] == [
        *(3600, 120, 90),
        *(None, None, None),
    ]
    assert Job({"t": 1795226574}).moment("t") == 1795226574.0
    assert Job({"t": "Sat Nov 21 25:61:61 99999"}).moment("t") is None
    assert Job({"t": "Sat Foo 21 02:02:54 2026"}).moment("t") is None
    assert Job({"n": "1e5", "b": "nan"}).number("n") == 100_000
    assert Job({"n": "1e5", "b": "nan"}).number("b") is None
