"""The main job with simulated servers: up, found, used, shut down."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from .conftest import chat, request, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Job, Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
FIRST = "rehearsal-1B-0"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() if file.is_file() else b"" for file in folder.rglob("*")}


def without_ages(text: str) -> list[str]:
    return [word for word in text.split() if not word.rstrip("s").isdigit()]


@pytest.fixture
def job(lab: Lab) -> Job:
    return lab.submit(instances=2)


def test_submit_prints_endpoints_on_stdout_and_progress_on_stderr(lab: Lab) -> None:
    answer = lab.aegis("submit", "--config", lab.deployment(instances=2), "--wait")
    job = lab.job(answer.err.partition("submitted ")[2].split()[0])
    assert answer.out.split() == job.endpoints
    assert len(job.endpoints) == 2
    assert job.handle.startswith("local://")
    assert "2 of 2 healthy" in answer.err
    for endpoint in job.endpoints:
        said = chat(endpoint, "rehearsal-1B")
        assert "sim" in said["system_fingerprint"]
        assert said["usage"]["completion_tokens"] == 8


def test_submit_without_wait_prints_the_handle(lab: Lab) -> None:
    answer = lab.aegis("submit", "--config", lab.deployment())
    job = lab.job(answer.out.strip())
    assert answer.err == ""
    assert lab.aegis("status", job.handle).out.startswith(f"job        {job.handle}")
    wait_until(lambda: job.status()["model_status"] == "READY")


def test_submit_json_has_the_endpoints(lab: Lab) -> None:
    answer = lab.aegis("submit", "--config", lab.deployment(), "--wait", "--json")
    said = json.loads(answer.out)
    job = lab.job(said["job_id"])
    assert said == {"job_id": job.handle, "model_name": "rehearsal-1B", "endpoints": job.endpoints}


def test_status(lab: Lab, job: Job) -> None:
    said = job.status()
    assert said["model_name"] == "rehearsal-1B"
    assert said["model_status"] == "READY"
    assert said["base_url"] == f"http://{job.endpoints[0]}/v1"
    assert (said["healthy"], said["instances"]) == (2, 2)
    assert "pending_reason" not in said
    assert "failed_reason" not in said
    assert [each["job_id"] for each in json.loads(lab.aegis("status", "--json-mode").out)] == [job.handle]
    overview = lab.aegis("status")
    assert overview.err == ""
    assert all(word in overview.out for word in (job.handle, "READY", "2/2", said["base_url"]))
    details = lab.aegis("status", job.id).out
    assert all(word in details for word in (job.handle, *job.endpoints, FIRST, "healthy", str(job.run_dir)))


def test_registry_commands(lab: Lab, job: Job) -> None:
    port = job.registry.rpartition(":")[2]
    for connection in (("--registry-url", f"http://{job.registry}"), ("--registry-port", port)):
        listed = json.loads(lab.aegis("registry", "list", "--format", "json", *connection).out)
        assert sorted(each["service_id"] for each in listed) == [FIRST, "rehearsal-1B-1"]
        text = lab.aegis("registry", "list-healthy", *connection).out
        assert all(endpoint in text for endpoint in job.endpoints)
        assert lab.aegis("registry", "count", *connection).out == "2\n"
        assert lab.aegis("registry", "count", "--type", "vllm", *connection).out == "0\n"
        one = json.loads(lab.aegis("registry", "get", FIRST, "--json", *connection).out)
        assert f"{one['host']}:{one['port']}" == job.endpoints[0]
        assert lab.aegis("registry", "get", "nobody", *connection, code=4).out == ""


def test_logs(lab: Lab, job: Job) -> None:
    assert "2 of 2 healthy" in lab.aegis("logs", job.handle).out
    engine = lab.aegis("logs", job.id, "--instance", FIRST).out
    assert "start 1 on port" in engine
    assert (
        lab.aegis("logs", job.id, "--instance", FIRST, "-n", "1").out == engine.splitlines(keepends=True)[-1]
    )
    unknown = lab.aegis("logs", job.id, "--instance", "rehearsal-1B-7", code=4)
    assert "did you mean `rehearsal-1B-1`" in unknown.err


def test_followed_logs_end_with_the_job(lab: Lab, job: Job) -> None:
    following = lab.start("logs", "-f", job.handle)
    wait_until(lambda: "healthy" in lab.output(following).out)
    lab.aegis("shutdown", job.handle)
    assert following.wait(10) == 0
    assert lab.output(following).out == job.log
    assert "stopping: shut down" in job.log


@pytest.mark.parametrize("how", ["handle", "id", "--job-id", "--endpoints-file", "default file"])
def test_shutdown(lab: Lab, how: str) -> None:
    job = lab.submit()
    args = {
        "handle": [job.handle],
        "id": [job.id],
        "--job-id": ["--job-id", job.handle],
        "--endpoints-file": ["--endpoints-file", "aegis_endpoints.txt"],
        "default file": [],
    }[how]
    endpoint = job.endpoints[0]
    said = lab.aegis("shutdown", *args)
    assert said.out == ""
    assert said.err == f"{job.handle} is shut down\n"
    assert lab.is_empty()
    assert not job.endpoints_file.exists()
    assert request(endpoint, "GET", "/health")[0] == 0
    status = job.status()
    assert (status["model_status"], status["base_url"], status["services"]) == ("SHUTDOWN", "UNAVAILABLE", [])
    again = lab.aegis("shutdown", job.handle)
    assert "has ended already: shut down" in again.err
    assert lab.aegis("shutdown", code=4).out == ""


def test_unknown_jobs_are_not_found(lab: Lab) -> None:
    for command in (("status",), ("logs",), ("shutdown",), ("shutdown", "--job-id")):
        for name in ("local://nobody", "nobody", "1; touch X #"):
            said = lab.aegis(*command, name, code=4)
            assert said.err.startswith("error: there is no job")
    assert not (lab.work / "X").exists()


def test_dry_run_makes_nothing_and_shows_what_submit_runs(lab: Lab) -> None:
    config = lab.deployment(instances=2, walltime="00:10:00", env={"A": "it's $(touch X)"})
    flags = ["--config", config, "--served-model-name", "other name", "--extra-sim-args", "--seed", "7"]
    before = tree(lab.path)
    shown = lab.aegis("submit", "--dry-run", *flags)
    assert tree(lab.path) == before
    assert shown.err == ""
    job = lab.job(lab.aegis("submit", *flags).out.strip())
    assert (job.run_dir / f"{job.run_dir.name}.sh").read_text() == shown.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 6)])
def test_launch_ends_whole_on_a_signal(lab: Lab, number: int, code: int) -> None:
    launch = lab.start("launch", "--config", lab.deployment(instances=2))
    endpoints = wait_until(lambda: lab.output(launch).out).split()
    assert endpoints == (lab.work / "aegis_endpoints.txt").read_text().split()
    assert chat(endpoints[1], "rehearsal-1B")["choices"]
    launch.send_signal(number)
    assert launch.wait(20) == code, lab.output(launch).err
    assert lab.is_empty()
    assert not (lab.work / "aegis_endpoints.txt").exists()
    assert ("error: interrupted" in lab.output(launch).err) == (code == 6)


def test_a_launch_is_found_by_status_and_shutdown(lab: Lab) -> None:
    launch = lab.start("launch", "--config", lab.deployment())
    wait_until(lambda: lab.output(launch).out)
    (view,) = json.loads(lab.aegis("status", "--json").out)
    assert view["model_status"] == "READY"
    lab.aegis("shutdown", view["job_id"])
    assert launch.wait(5) == 0


def test_a_job_ends_at_its_walltime(lab: Lab) -> None:
    job = lab.submit(walltime="00:00:05")
    assert 0 < job.status()["time_left"] <= 5
    wait_until(lambda: job.manifest["state"] == "SHUTDOWN", seconds=20)
    assert job.manifest["reason"] == "ended at its walltime of 00:00:05"
    assert wait_until(lab.is_empty, seconds=5)
