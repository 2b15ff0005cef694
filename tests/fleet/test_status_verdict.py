"""The truth table: what a user is told, from scheduler, manifest and servers."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.fleet.verdict import Evidence, Verdict, judge
from aegis.runs import ENDED, JobState, Manifest
from aegis.schedulers.base import JobStatus

NOW = 1_000_000.0
RUNNING = JobStatus(state="LAUNCHING", word="RUNNING")
KILLED = JobStatus(state="FAILED", word="TIMEOUT", reason="killed at its walltime of 01:00:00")
COMPLETED = JobStatus(state="SHUTDOWN", word="COMPLETED", exit_code=0)
EXIT_1 = JobStatus(state="FAILED", word="FAILED", exit_code=1, reason="ended with exit code 1")
WAITS = JobStatus(state="PENDING", word="PENDING", reason="waits for free nodes")


def manifest(state: JobState = "PENDING", **fields: Any) -> Manifest:
    values: dict[str, Any] = {"created": NOW - 3600, "registry_url": "http://n:1", **fields}
    return Manifest(job="slurm://1", name="n", models=["m"], run_dir="/r", state=state, **values)


def verdict(own: Manifest, status: JobStatus | None, **more: Any) -> tuple[str, str]:
    said = judge(Evidence(manifest=own, status=status, now=NOW, **more))
    return said.state, said.reason


READY = manifest("READY", ready=NOW - 100)
SHUT = manifest("SHUTDOWN", ready=NOW - 100, ended=NOW - 50, reason="shut down")
BROKEN = manifest("FAILED", ended=NOW - 50, reason="the instance failed: model not found")


@pytest.mark.parametrize(
    ("own", "status", "more", "expected"),
    [
        # before
        (manifest(), WAITS, {}, ("PENDING", "waits for free nodes")),
        (manifest(), RUNNING, {}, ("LAUNCHING", "")),
        (READY, WAITS, {}, ("PENDING", "back in the queue after a first run: waits for free nodes")),
        (SHUT, WAITS, {}, ("PENDING", "back in the queue after a first run: waits for free nodes")),
        (READY, JobStatus(state="PENDING", age=20), {}, ("READY", "")),
        (SHUT, JobStatus(state="PENDING", age=60), {}, ("SHUTDOWN", "shut down")),
        (READY, JobStatus(state="PENDING", age=20), {"healthy": 2}, ("READY", "")),
        # while it runs
        (manifest("LAUNCHING"), RUNNING, {"healthy": 0}, ("LAUNCHING", "")),
        (manifest("LAUNCHING"), RUNNING, {"healthy": 1}, ("READY", "")),
        (READY, RUNNING, {"healthy": 0}, ("LAUNCHING", "no instance is healthy at present")),
        (READY, RUNNING, {"healthy": 0, "trouble": "1 of 1 failed"}, ("LAUNCHING", "1 of 1 failed")),
        (READY, RUNNING, {"healthy": 1, "trouble": "silent"}, ("READY", "silent")),
        (READY, RUNNING, {}, ("READY", "")),
        (SHUT, RUNNING, {}, ("SHUTDOWN", "shut down")),
        (
            SHUT,
            JobStatus(state="LAUNCHING", restarts=1, started=NOW - 10),
            {},
            ("LAUNCHING", "started again by the scheduler"),
        ),
        # after: the deeper cause speaks first
        (SHUT, COMPLETED, {}, ("SHUTDOWN", "shut down")),
        (BROKEN, EXIT_1, {}, ("FAILED", "the instance failed: model not found")),
        (SHUT, EXIT_1, {}, ("SHUTDOWN", "shut down")),
        (manifest("LAUNCHING"), EXIT_1, {}, ("FAILED", "ended with exit code 1")),
        (manifest(), COMPLETED, {}, ("SHUTDOWN", "ended with exit code 0")),
        (SHUT, KILLED, {}, ("SHUTDOWN", "killed at its walltime of 01:00:00")),
        (READY, KILLED, {}, ("SHUTDOWN", "killed at its walltime of 01:00:00")),
        (
            manifest("LAUNCHING"),
            KILLED,
            {},
            ("FAILED", "killed at its walltime of 01:00:00, before any server was ready"),
        ),
        (
            manifest("SHUTDOWN", ended=NOW, reason="ended at its walltime of 01:00:00"),
            COMPLETED,
            {},
            ("FAILED", "ended at its walltime of 01:00:00, before any server was ready"),
        ),
        (
            SHUT,
            JobStatus(state="SHUTDOWN", word="CANCELLED by 5001", reason="cancelled by alice"),
            {},
            ("SHUTDOWN", "cancelled by alice"),
        ),
        (
            SHUT,
            JobStatus(state="FAILED", word="NODE_FAIL", exit_code=0, reason="a node failed"),
            {},
            ("FAILED", "a node failed"),
        ),
        (
            BROKEN,
            JobStatus(state="FAILED", word="OUT_OF_MEMORY", signal=9, reason="out of memory"),
            {},
            ("FAILED", "out of memory; the job says: the instance failed: model not found"),
        ),
        (BROKEN, JobStatus(state="FAILED", reason=BROKEN.reason), {}, ("FAILED", BROKEN.reason)),
        (
            SHUT,
            JobStatus(state="FAILED", word="F", reason="its first node failed"),
            {},
            ("FAILED", "its first node failed"),
        ),
        (
            manifest("LAUNCHING"),
            JobStatus(state="FAILED", word="F", exit_code=137, signal=9, reason="ended by SIGKILL"),
            {},
            ("FAILED", "ended by SIGKILL"),
        ),
        # the scheduler's notice, which reaches the head as a signal
        (
            SHUT,
            JobStatus(state="SHUTDOWN", word="COMPLETED", exit_code=0, started=NOW - 3590, walltime=3600),
            {},
            ("SHUTDOWN", "ended at its walltime of 01:00:00"),
        ),
        (
            manifest("SHUTDOWN", ended=NOW - 50, reason="shut down"),
            JobStatus(state="SHUTDOWN", word="COMPLETED", exit_code=0, started=NOW - 100, walltime=60),
            {},
            ("FAILED", "ended at its walltime of 00:01:00, before any server was ready"),
        ),
        (
            SHUT,
            JobStatus(state="SHUTDOWN", word="COMPLETED", exit_code=0, started=NOW - 1000, walltime=3600),
            {},
            ("SHUTDOWN", "shut down"),
        ),
        # nobody knows
        (SHUT, None, {}, ("SHUTDOWN", "shut down")),
        (READY, None, {"healthy": 1}, ("READY", "")),
        (manifest(created=NOW - 5), None, {}, ("UNKNOWN", "the scheduler does not know the job yet")),
        (READY, JobStatus(state="UNKNOWN", word="ODD"), {}, ("UNKNOWN", "the scheduler says ODD")),
        (READY, JobStatus(state="UNKNOWN", word="ODD"), {"healthy": 1}, ("READY", "")),
        # silence
        (
            manifest("LAUNCHING"),
            JobStatus(state="LAUNCHING", age=725),
            {"silence": "timed out"},
            ("UNKNOWN", "the scheduler does not answer; 12m05s ago it said: running"),
        ),
        (
            manifest(),
            JobStatus(state="PENDING", age=5, reason="waits for free nodes"),
            {"silence": "timed out"},
            ("UNKNOWN", "the scheduler does not answer; 5s ago it said: waiting (waits for free nodes)"),
        ),
        (
            manifest(),
            JobStatus(state="UNKNOWN", reason="timed out"),
            {"silence": "timed out"},
            ("UNKNOWN", "the scheduler does not answer: timed out"),
        ),
        (SHUT, JobStatus(state="LAUNCHING", age=9), {"silence": "timed out"}, ("SHUTDOWN", "shut down")),
        (
            READY,
            JobStatus(state="LAUNCHING", age=60),
            {"silence": "timed out", "healthy": 1},
            ("READY", "the scheduler does not answer; 1m00s ago it said: running"),
        ),
    ],
)
def test_the_truth(
    own: Manifest, status: JobStatus | None, more: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert verdict(own, status, **more) == expected


@pytest.mark.parametrize("state", ["PENDING", "LAUNCHING", "READY"])
def test_absence_is_never_success(state: JobState) -> None:
    said = judge(Evidence(manifest=manifest(state), status=None, now=NOW, healthy=0))
    assert said.state == "FAILED"
    assert "neither the queue nor the accounting of this cluster knows it" in said.reason
    assert not said.final  # another cluster with the same home may know it
    much_later = NOW + 40 * 86400
    assert judge(Evidence(manifest=manifest(state), status=None, now=much_later, healthy=0)).final


def test_what_is_accounted_is_final() -> None:
    done = manifest("FAILED", reason="a node failed", accounted=True)
    assert judge(Evidence(manifest=done, status=RUNNING, now=NOW)) == Verdict(
        "FAILED", "a node failed", final=True
    )


@given(
    own=st.builds(
        manifest,
        st.sampled_from(get_args(JobState)),
        ready=st.none() | st.just(NOW - 9),
        ended=st.none() | st.just(NOW - 5),
        reason=st.sampled_from(["", "why"]),
        created=st.just(NOW - 3600),
    ),
    status=st.none()
    | st.builds(
        JobStatus,
        state=st.sampled_from(get_args(JobState)),
        reason=st.sampled_from(["", "killed at its walltime of 1", "r"]),
        word=st.text(max_size=9),
        exit_code=st.none() | st.integers(-300, 300),
        signal=st.none() | st.integers(0, 64),
        restarts=st.integers(0, 2),
        age=st.floats(0, 1e6),
    ),
    silence=st.sampled_from(["", "timed out"]),
    healthy=st.none() | st.integers(0, 3),
)
def test_success_is_said_by_somebody(
    own: Manifest, status: JobStatus | None, silence: str, healthy: int | None
) -> None:
    said = judge(Evidence(manifest=own, status=status, now=NOW, silence=silence, healthy=healthy))
    if said.state == "SHUTDOWN":
        served = own.ready is not None and status is not None and "walltime" in status.reason
        assert own.state == "SHUTDOWN" or (status and status.state == "SHUTDOWN") or served
    if said.state == "READY":
        assert healthy or own.state == "READY"
    if said.state in ENDED and silence:
        assert own.state in ENDED
    if said.final:
        assert said.state in ENDED
