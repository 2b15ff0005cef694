"""A service on a real Slurm: its successor waits in the queue for its time, takes over, and goes with the service."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab.conftest import QUICK, wait_until

from .fleet import Fleet

if TYPE_CHECKING:
    from .lab import User

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]


@pytest.fixture
def fleet(alice: User) -> Fleet:
    made = Fleet(alice)
    alice.environ |= {"AEGIS_AGENT_POLICY": json.dumps({**QUICK, "retire_least": 1.0, "successor_look": 1.0})}
    return made


def successor_of(fleet: Fleet, handle: str) -> dict[str, Any]:
    """Return the job that is to take over, once it is in the queue."""
    handle = wait_until(lambda: fleet.view(handle)["successor"], "a successor is submitted")
    return fleet.view(handle)


def test_the_successor_waits_for_its_time_and_goes_with_the_service(fleet: Fleet) -> None:
    first, _ = fleet.serve(keep_alive=True, service="chat", until="1-00:00:00")
    waiting = successor_of(fleet, first)
    number = first.removeprefix("slurm://")
    told = fleet.user.run("scontrol", "-o", "show", "job", waiting["job_id"].removeprefix("slurm://")).out
    assert f"Dependency=after:{number}+5" in told
    assert (waiting["model_status"], waiting["predecessor"]) == ("PENDING", first)
    assert fleet.view("chat")["job_id"] == first
    # whoever cancels the successor ends the service, unless he submits another
    fleet.user.run("scancel", waiting["job_id"].removeprefix("slurm://"))
    fleet.wait_for(first, "READY", "the service ends with this job")
    by_hand = fleet.aegis("submit", "--successor-of", "chat").out.strip()
    assert fleet.view(by_hand)["model_status"] == "PENDING"
    fleet.aegis("shutdown", "chat")
    assert fleet.wait_for(first, "SHUTDOWN")
    assert fleet.wait_for(by_hand, "SHUTDOWN")


def test_it_takes_over_and_the_old_job_ends(fleet: Fleet) -> None:
    # the whole walltime is overlap: the successor may start as soon as this job has
    first, (before,) = fleet.serve(
        keep_alive=True, service="chat", walltime="00:02:00", overlap="00:01:59", endpoints_file="all.txt"
    )
    fleet.wait_for(first, "SHUTDOWN", "handed over to slurm://")
    second = fleet.view(first)["successor"]
    assert fleet.view(second)["predecessor"] == first
    (after,) = (fleet.work / "all.txt").read_text().split()
    assert after != before
    fleet.aegis("shutdown", "chat")
    wait_until(
        lambda: all(each["model_status"] == "SHUTDOWN" for each in fleet.all()), "every job has ended", 60
    )
