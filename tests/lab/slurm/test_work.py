"""Jobs that work through inputs and end, on a real Slurm; what is left goes back into the queue."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.lab.conftest import wait_until

from .fleet import Fleet

if TYPE_CHECKING:
    from .lab import SlurmLab, User

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]
WORK = "rows.jsonl --output answers.jsonl --prompt 'Say {text}' --max-tokens 4 --concurrency 4"


@pytest.fixture
def fleet(alice: User) -> Fleet:
    return Fleet(alice)


def rows(fleet: Fleet, count: int) -> list[str]:
    lines = [json.dumps({"text": f"word {number}"}) for number in range(count)]
    fleet.user.transport.write(str(fleet.work / "rows.jsonl"), "\n".join(lines) + "\n")
    return [str(number + 1) for number in range(count)]


def answered(fleet: Fleet) -> list[str]:
    lines = (fleet.work / "answers.jsonl").read_text().splitlines()
    return [json.loads(line)["custom_id"] for line in lines]


def test_a_job_on_two_nodes_ends_when_its_rows_are_done(fleet: Fleet) -> None:
    ids = rows(fleet, 50)
    handle = fleet.submit(map=WORK, instances=2)
    view = fleet.wait_for(handle, "SHUTDOWN")
    assert view["reason"] == "all 50 are done"
    assert answered(fleet) == ids
    wait_until(lambda: not fleet.processes("node1"), "no process is left")


def test_what_is_left_before_the_walltime_goes_back_into_the_queue(fleet: Fleet, slurm: SlurmLab) -> None:
    ids = rows(fleet, 400)  # two minutes of work
    handle = fleet.submit(
        map=f"{WORK} --grace 2 --resubmit", walltime="00:01:00", extra_sim_args=["--ttft-ms", "1200"]
    )
    fleet.wait_for(handle, "PENDING", "back in the queue after a first run", 120)
    assert not (fleet.work / "answers.jsonl").exists()
    done = len((fleet.work / "answers.jsonl.journal").read_text().splitlines()) - 1
    assert 50 < done < 400
    slurm.begin(handle.removeprefix("slurm://"), "now+3")
    fleet.wait_for(handle, "LAUNCHING", "", 60)
    fleet.aegis("shutdown", handle)
    wait_until(lambda: fleet.view(handle)["final"])
    again = fleet.submit(map=WORK)
    fleet.wait_for(again, "SHUTDOWN", "all 400 are done")
    assert answered(fleet) == ids
