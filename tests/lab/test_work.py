"""Jobs that work through inputs and end: `map` in a deployment, on this machine."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import wait_until

if TYPE_CHECKING:
    from .conftest import Job, Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
ROWS = 60
WORK = "'the rows.jsonl' --output 'the answers.jsonl' --prompt 'Say {text}' --max-tokens 4 --concurrency 4"


def rows(lab: Lab, count: int = ROWS, more: str = "") -> None:
    lines = [json.dumps({"text": f"word {number}"}) for number in range(count)]
    (lab.work / "the rows.jsonl").write_text("\n".join(lines) + f"\n{more}")


def answered(lab: Lab) -> list[str]:
    """Return the ids of the rows in the output."""
    lines = (lab.work / "the answers.jsonl").read_text().splitlines()
    return [json.loads(line)["custom_id"] for line in lines]


def ended(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = wait_until(
        lambda: view if (view := job.status())["model_status"] in {"SHUTDOWN", "FAILED"} else None
    )
    return found


def submitted(lab: Lab, **keys: Any) -> Job:
    file = lab.deployment(**{"map": WORK, "instances": 2, "gpus_per_node": 2, **keys})
    return lab.job(lab.aegis("submit", "--config", file).out.strip())


def test_a_job_ends_when_its_rows_are_done(lab: Lab) -> None:
    rows(lab)
    job = submitted(lab)
    view = ended(job)
    assert (view["model_status"], view["reason"]) == ("SHUTDOWN", f"all {ROWS} are done")
    assert answered(lab) == [str(number + 1) for number in range(ROWS)]
    wait_until(lambda: not job.find("aegis"), "no process is left")
    assert json.loads((job.run_dir / "map.json").read_text())["left"] == 0


def test_rows_that_are_wrong_end_the_job_in_its_first_seconds(lab: Lab) -> None:
    rows(lab, more='{"txt": "no such column"}\n')
    view = ended(submitted(lab, extra_sim_args=["--startup-seconds", "60"]))
    assert view["model_status"] == "FAILED"
    assert f"the rows.jsonl:{ROWS + 1}: there is no column 'text'" in view["reason"]


def test_a_job_that_is_shut_down_brings_home_what_is_under_way_and_the_next_continues(lab: Lab) -> None:
    rows(lab)
    slow = ["--ttft-ms", "1500"]
    job = submitted(lab, extra_sim_args=slow)
    journal = lab.work / "the answers.jsonl.journal"
    done = wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 8)
    assert done
    wait_until(lambda: f"of {ROWS} rows" in job.status()["reason"], "status says how far it is")
    told = [each for each in job.services.values() if each["service_type"] == "map"]
    assert told[0]["metadata"]["rows"] == ROWS
    began = time.monotonic()
    lab.aegis("shutdown", job.handle)
    assert time.monotonic() - began < 15
    assert ended(job)["model_status"] == "SHUTDOWN"
    assert not (lab.work / "the answers.jsonl").exists()
    before = journal.read_bytes().count(b"\n")
    again = submitted(lab)
    assert ended(again)["reason"] == f"all {ROWS} are done"
    assert answered(lab) == [str(number + 1) for number in range(ROWS)]
    assert f"{before - 1} of {ROWS} rows are done already" in again.log


def test_rows_that_fail_are_told_and_the_job_has_still_served(lab: Lab) -> None:
    rows(lab, 3, json.dumps({"text": "much " * 40_000}) + "\n")
    view = ended(submitted(lab, extra_sim_args=["--max-model-len", "2048"]))
    assert view["model_status"] == "SHUTDOWN"
    assert "1 row failed" in view["reason"]
    assert answered(lab) == ["1", "2", "3", "4"]


def test_what_cannot_work_is_refused_before_the_queue(lab: Lab) -> None:
    file = lab.deployment(map="nothing.jsonl --output o --prompt '{text}'")
    done = lab.aegis("submit", "--config", file, code=2)
    assert f"{file}:" in done.err
    assert "no such file: 'nothing.jsonl'" in done.err
    unknown = lab.aegis("submit", "--config", lab.deployment(), "--map", "x --output o --promt x", code=2)
    assert "--promt" in unknown.err
