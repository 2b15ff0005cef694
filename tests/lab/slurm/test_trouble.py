"""What befalls jobs, and Slurm itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from aegis.schedulers.base import SchedulerUnavailable
from tests.lab.conftest import wait_until

from .lab import SLEEP

if TYPE_CHECKING:
    from .lab import SlurmLab, User

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]
NOTICED = 60.0  # seconds until Slurm has seen that a node is gone


def test_walltime_and_a_crashed_node_end_jobs_and_are_told(alice: User, slurm: SlurmLab) -> None:
    told = "trap 'echo told; exit 0' TERM; touch began.$SLURM_JOB_ID; sleep 600 & wait"
    asked = [("node1", SLEEP), ("node2", SLEEP), ("node3", told)]
    late, lost, warned = (
        alice.submit(alice.component(code, nodelist=node, directives=("--no-requeue",))).handle
        for node, code in asked
    )
    for handle in (late, lost, warned):
        alice.wait_begun(handle)
    slurm.crash("node2")
    slurm.expire(late.removeprefix("slurm://"))
    slurm.run("scontrol", "update", f"jobid={warned.removeprefix('slurm://')}", "EndTime=now+75")
    ended = alice.wait_for(late, "FAILED", "killed at its walltime of 00:", NOTICED)
    assert ended.word == "TIMEOUT"
    ended = alice.wait_for(lost, "FAILED", "a node failed: node2", NOTICED)
    assert ended.word == "NODE_FAIL"
    alice.wait_for(warned, "SHUTDOWN", seconds=NOTICED)  # it ended well, in the time that it was given
    assert "told" in alice.run("cat", alice.slurm.logs(warned).out).out


def test_the_loss_of_one_node_does_not_end_the_others(alice: User, slurm: SlurmLab) -> None:
    handle = alice.submit(alice.component(nodes=2, nodelist="node[2-3]")).handle
    alice.wait_begun(handle)
    slurm.crash("node3", noticed=True)
    wait_until(lambda: (known := alice.status(handle)) and known.nodes == "node2", "node3 is taken away")
    assert alice.wait_for(handle, "LAUNCHING").reason == ""
    alice.slurm.cancel(handle)
    alice.wait_for(handle, "SHUTDOWN")


def test_a_job_without_its_first_node_is_no_job_any_more(alice: User, slurm: SlurmLab) -> None:
    handle = alice.submit(alice.component(nodes=2, nodelist="node[2-3]")).handle
    alice.wait_begun(handle)
    slurm.crash("node2", noticed=True)
    status = alice.wait_for(handle, "FAILED", "its first node node2 failed")
    assert status.word == "RUNNING"
    alice.slurm.cancel(handle)
    alice.wait_for(handle, "SHUTDOWN", "cancelled")


def test_while_the_controller_is_away_nothing_is_claimed_and_nothing_submitted(
    alice: User, slurm: SlurmLab
) -> None:
    handle = alice.submit().handle
    alice.wait_begun(handle)
    with slurm.without_controller():
        began = time.monotonic()
        with pytest.raises(SchedulerUnavailable, match="Slurm does not answer") as error:
            alice.status(handle)
        assert time.monotonic() - began < 60
        assert error.value.transient
        with pytest.raises(SchedulerUnavailable, match="Unable to contact slurm controller"):
            alice.submit(alice.component(), HF_TOKEN="x")
        assert list((alice.logs / ".secrets").iterdir()) == []
    assert alice.wait_for(handle, "LAUNCHING").reason == ""  # and back
    alice.slurm.cancel(handle)
    alice.wait_for(handle, "SHUTDOWN")
