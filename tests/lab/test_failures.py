"""What fails says why, soon, and with the right exit code; what hangs leaves the endpoints and comes back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import chat, request, wait_until

if TYPE_CHECKING:
    from .conftest import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
FIRST, SECOND = "rehearsal-1B-0", "rehearsal-1B-1"
NOT_FOUND = (
    "OSError: Can't load the configuration of 'org/no-model'. If you were trying to load it from the hub, "
    "make sure you don't have a local directory with the same name."
)


def sim(name: str, *args: str) -> dict[str, Any]:
    return {"model": name, "engine": "sim", "extra_sim_args": list(args)}


def test_a_model_that_is_not_found(lab: Lab) -> None:
    began = time.monotonic()
    said = lab.aegis("launch", "--config", lab.deployment(extra_sim_args=["--fail-start", NOT_FOUND]), code=1)
    assert time.monotonic() - began < 10
    assert said.out == ""
    assert "error: the instance failed: model not found: org/no-model; exited with code 1" in said.err
    assert f"    | {NOT_FOUND}" in said.err
    assert "next start" not in said.err, "another start would fail the same way"
    assert lab.is_empty()
    assert not (lab.work / "aegis_endpoints.txt").exists()


def test_submit_wait_tells_why_the_job_failed(lab: Lab) -> None:
    job = lab.submit(extra_sim_args=["--fail-start", NOT_FOUND], code=1)
    status = job.status()
    assert status["model_status"] == "FAILED"
    assert "model not found: org/no-model" in status["failed_reason"]
    assert NOT_FOUND in lab.aegis("logs", job.id, "--instance", FIRST).out
    wait_until(lab.is_empty)


def test_a_crash_loop_is_given_up(lab: Lab) -> None:
    config = lab.deployment(extra_sim_args=["--fail-start", "strange words"], max_restarts=2)
    said = lab.aegis("launch", "--config", config, code=1)
    assert said.err.count("next start in") == 2
    assert "error: the instance failed" in said.err
    assert "    | strange words" in said.err


def test_one_of_two_models_fails(lab: Lab) -> None:
    models = [sim("good-1B"), sim("bad-1B", "--fail-start", NOT_FOUND)]
    answer = lab.aegis("submit", "--wait", "--config", lab.deployment(models=models), code=7)
    job = lab.job(answer.err.partition("submitted ")[2].split()[0])
    assert answer.out.split() == job.endpoints
    assert len(job.endpoints) == 1
    assert "1 of 2 instances are healthy" in answer.err
    assert "model not found: org/no-model" in answer.err
    assert chat(job.endpoints[0], "good-1B")["choices"]
    assert job.states() == {"good-1B-0": "healthy", "bad-1B-0": "failed"}
    status = job.status()
    assert (status["model_status"], status["healthy"], status["instances"]) == ("READY", 1, 2)


def test_a_start_that_takes_too_long(lab: Lab) -> None:
    config = lab.deployment(extra_sim_args=["--startup-seconds", "60"])
    said = lab.aegis("launch", "--config", config, "--startup-timeout", "2", code=5)
    assert "error: no instance was healthy after 2 s" in said.err
    assert FIRST in said.err
    assert lab.is_empty()


def test_submit_wait_gives_up_waiting_but_not_the_job(lab: Lab) -> None:
    config = lab.deployment(extra_sim_args=["--startup-seconds", "5"])
    said = lab.aegis("submit", "--wait", "--wait-timeout", "1", "--config", config, code=5)
    job = lab.job(said.err.partition("submitted ")[2].split()[0])
    wait_until(lambda: job.status()["model_status"] == "READY")


@pytest.mark.parametrize("fault", ["hang", "hang_health"])
def test_a_hung_server_leaves_the_endpoints_and_returns(lab: Lab, fault: str) -> None:
    lab.policy(canary_interval=0.5, canary_timeout=1, probe_timeout=0.5, restart_after=600)
    job = lab.submit(instances=2)
    first, second = job.endpoints
    assert request(first, "POST", "/sim/fault", {fault: True})[0] == 200
    service = job.wait_for(FIRST, "unhealthy")
    wait_until(lambda: job.endpoints == [second], seconds=5)
    assert ("wedged" in service["metadata"]["reason"]) == (fault == "hang"), service["metadata"]["reason"]
    assert request(first, "POST", "/sim/fault", {fault: False})[0] == 200
    service = job.wait_for(FIRST, "healthy")
    assert service["metadata"]["restarts"] == 0
    wait_until(lambda: job.endpoints == [first, second], seconds=5)


def test_a_server_that_stays_hung_is_started_again(lab: Lab) -> None:
    lab.policy(canary_interval=0.5, canary_timeout=1, restart_after=1)
    job = lab.submit(instances=2)
    endpoints = job.endpoints
    assert request(endpoints[0], "POST", "/sim/fault", {"hang": True})[0] == 200
    job.wait_for(FIRST, "unhealthy")
    wait_until(lambda: job.service(FIRST)["metadata"].get("restarts") == 1)
    job.wait_for(FIRST, "healthy")
    wait_until(lambda: job.endpoints == endpoints, seconds=5)
    assert job.service(SECOND)["metadata"]["restarts"] == 0


def test_a_hung_server_delays_nobody_else(lab: Lab) -> None:
    lab.policy(probe_timeout=30, backoff_first=0.2)
    job = lab.submit(instances=2)
    assert request(job.endpoints[0], "POST", "/sim/fault", {"hang_health": True})[0] == 200
    job.engine(SECOND).kill()
    wait_until(lambda: job.service(SECOND)["metadata"].get("restarts") == 1, seconds=10)
    job.wait_for(SECOND, "healthy", 10)
    began = time.monotonic()
    lab.aegis("shutdown", job.handle)
    assert time.monotonic() - began < 10


def test_an_engine_that_is_not_installed(lab: Lab) -> None:
    config = lab.deployment(model="org/some-1B", engine="vllm", venv=str(lab.path / "no venv"))
    said = lab.aegis("launch", "--config", config, code=None)
    assert said.code in {1, 2}
    assert "no venv" in said.err
    assert lab.is_empty()


def test_a_model_directory_that_is_not_there(lab: Lab) -> None:
    said = lab.aegis(
        "launch", "--config", lab.deployment(model=str(lab.path / "none"), engine="vllm"), code=2
    )
    assert "is not there" in said.err


def test_a_launch_serves_where_the_index_cannot_be_written(lab: Lab) -> None:
    (lab.path / "file").touch()
    lab.environ["AEGIS_STATE_DIR"] = str(lab.path / "file")
    process = lab.start("launch", "--config", lab.deployment())
    (endpoint,) = wait_until(lambda: lab.output(process).out).split()
    assert chat(endpoint, "rehearsal-1B")["choices"]
    assert "warning: `aegis status` will not list this job" in lab.output(process).err
    process.terminate()
    assert process.wait(30) == 0
