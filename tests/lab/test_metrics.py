"""`aegis metrics` of real jobs: two simulated servers with load, one of which is then killed."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import chat, wait_until

if TYPE_CHECKING:
    from .conftest import Job, Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
FIRST, SECOND = "rehearsal-1B-0", "rehearsal-1B-1"


@pytest.fixture
def job(lab: Lab) -> Job:
    return lab.submit(instances=2, max_restarts=0)


def metrics(lab: Lab, *args: object, code: int | None = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.aegis("metrics", *args, "--json", code=code).out)
    return found


def test_load_on_two_servers_is_seen_together(lab: Lab, job: Job) -> None:
    over = threading.Event()

    def load(endpoint: str) -> None:
        while not over.is_set():
            chat(endpoint, "rehearsal-1B")

    threads = [threading.Thread(target=load, args=(endpoint,)) for endpoint in job.endpoints]
    for thread in threads:
        thread.start()
    try:
        found = metrics(lab, job.handle, "--once", "--watch", "0.5")
        alone = metrics(lab, job.handle, "--instance", SECOND, "--once", "--watch", "0.5")
        text = lab.aegis("metrics", job.handle).out
    finally:
        over.set()
        for thread in threads:
            thread.join()
    together = found["metrics"]
    assert found["model_name"] == "rehearsal-1B"
    assert [each["instance"] for each in found["instances"]] == [FIRST, SECOND]
    for key in ("generation_tokens_per_sec", "prompt_tokens_per_sec", "requests_per_sec"):
        assert together[key] > 0
        assert together[key] == pytest.approx(sum(each["metrics"][key] for each in found["instances"]))
    assert together["generation_tokens_per_sec"] == pytest.approx(8 * together["requests_per_sec"], rel=0.3)
    assert found["latencies"]["request_latency"]["window"]["count"] > 0
    assert [each["instance"] for each in alone["instances"]] == [SECOND]
    assert "2/2 servers" in text
    assert "Generation Throughput" in text


def test_a_server_that_died_is_left_out_and_a_job_without_servers_says_so(lab: Lab, job: Job) -> None:
    job.engine(FIRST).kill()
    job.wait_for(FIRST, "failed")
    found = metrics(lab, job.handle, "--once", "--watch", "0.2")
    assert [each["instance"] for each in found["instances"]] == [SECOND]
    refused = lab.aegis("metrics", job.handle, "--instance", FIRST, code=1)
    assert f"{FIRST} is failed" in refused.err
    lab.aegis("shutdown", job.handle)
    ended = lab.aegis("metrics", job.handle, code=1)
    assert f"{job.handle} is SHUTDOWN" in ended.err


def test_a_watch_goes_on_until_the_job_ends(lab: Lab, job: Job) -> None:
    watch = lab.start("metrics", job.handle, "--json", "--watch", "0.2")
    wait_until(lambda: lab.output(watch).out.count("\n") >= 3)
    lab.aegis("shutdown", job.handle)
    wait_until(lambda: watch.poll() is not None)
    *looks, last = map(json.loads, lab.output(watch).out.splitlines())
    assert all(look["metrics"]["total_generation_tokens"] > 0 for look in looks)
    assert last["metrics"] == "Server not ready"
    assert watch.returncode == 1


def test_a_hung_server_costs_its_deadline_and_is_named(lab: Lab, job: Job) -> None:
    process = job.engine(FIRST)
    process.kill(signal.SIGSTOP)
    try:
        found = metrics(lab, job.handle, "--once", "--watch", "0.1")
    finally:
        os.kill(process.pid, signal.SIGCONT)
    errors = {each["instance"]: each["error"] for each in found["instances"]}
    assert errors.get(SECOND) is None
    assert (
        errors.get(FIRST, "no answer within 3 s") == "no answer within 3 s"
    )  # its agent may have seen it first
    assert found["metrics"]["total_generation_tokens"] > 0
