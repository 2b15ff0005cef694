"""A service on PBS: the successor is in the queue with its own time, takes over, and goes with the service."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab.conftest import wait_until

from .lab import can_rename_hosts
from .test_end_to_end import Fleet

if TYPE_CHECKING:
    from .lab import PbsLab

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not can_rename_hosts(), reason="no right to open a UTS namespace"),
]


@pytest.fixture
def fleet(pbs: PbsLab) -> Fleet:
    made = Fleet(pbs)
    made.lab.policy(retire_least=1.0, successor_look=1.0)
    return made


def jobs(fleet: Fleet) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(fleet.lab.aegis("status", "--json", "--all").out)
    return found


def test_the_successor_takes_over_at_its_time_and_the_next_waits_for_its_own(fleet: Fleet) -> None:
    first, (before,) = fleet.serve(
        keep_alive=True, service="chat", walltime="00:10:00", overlap="00:09:57", endpoints_file="all.txt"
    )
    fleet.wait_for(first, "SHUTDOWN", "handed over to pbs://")
    second = fleet.view(first)["successor"]
    (after,) = (fleet.work / "all.txt").read_text().split()
    assert after != before
    third = wait_until(lambda: fleet.view(second)["successor"], "the next one is submitted")
    assert [fleet.view(each)["predecessor"] for each in (second, third)] == [first, second]
    fleet.lab.aegis("shutdown", "chat")
    wait_until(lambda: all(each["model_status"] == "SHUTDOWN" for each in jobs(fleet)), "every job has ended")


def test_a_service_waits_in_the_queue_as_a_whole(fleet: Fleet) -> None:
    first, _ = fleet.serve(keep_alive=True, service="chat")
    second = wait_until(lambda: fleet.view(first)["successor"], "the successor is submitted")
    waiting = fleet.wait_for(second, "PENDING")
    (job,) = [each for each in fleet.pbs.jobs().values() if each["Job_Id"] == second.removeprefix("pbs://")]
    assert job["job_state"] == "W"
    assert waiting["predecessor"] == first
    fleet.lab.aegis("shutdown", first)
    assert fleet.wait_for(second, "SHUTDOWN")
