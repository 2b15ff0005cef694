"""kill -9 of anything: what is left is served on, or nothing is left."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port

from .conftest import chat, wait_until

if TYPE_CHECKING:
    from .conftest import Job, Lab, Process

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
FIRST, SECOND = "rehearsal-1B-0", "rehearsal-1B-1"


def both_healthy(job: Job, *others: Process) -> bool:
    """Tell whether both are healthy, served by other processes than these."""
    services = list(job.services.values())
    pids = {each["metadata"]["pid"] for each in services}
    states = {each["status"] for each in services}
    return states == {"healthy"} and not pids & {each.pid for each in others} and len(job.endpoints) == 2


def guard_of(job: Job) -> Process:
    return next(each for each in job.find("agent.py") if "--worker" not in each.command)


def test_a_killed_engine_is_started_again(lab: Lab) -> None:
    lab.policy(backoff_first=1.0)  # long enough to be seen
    job = lab.submit(instances=2)
    first, second = job.endpoints
    old = job.engine(FIRST)
    old.kill()
    wait_until(lambda: job.endpoints == [second], "the endpoints file loses it", 5)
    service = job.wait_for(FIRST, "unhealthy")
    assert service["metadata"]["reason"].startswith("killed by SIGKILL")
    assert job.status()["model_status"] == "READY"
    assert chat(second, "rehearsal-1B")["choices"]
    service = job.wait_for(FIRST, "healthy")
    assert service["metadata"]["restarts"] == 1
    assert service["metadata"]["pid"] != old.pid
    wait_until(lambda: job.endpoints == [first, second], "the endpoints file has it again")
    assert chat(first, "rehearsal-1B")["choices"]
    assert job.service(SECOND)["metadata"]["restarts"] == 0
    assert "rehearsal-1B-0 healthy again (start 2)" in job.log


def test_a_killed_launcher_leaves_no_orphan(lab: Lab) -> None:
    job = lab.submit(instances=2)
    began = time.monotonic()
    job.head.kill()
    wait_until(lab.is_empty, "every process is gone", 15)
    assert time.monotonic() - began < 10
    assert (job.run_dir / "secrets").exists()
    # Its endpoints file is no obstacle to the next job, which tidies up; that one's own is left alone.
    after = lab.submit(instances=2)
    assert chat(after.endpoints[0], "rehearsal-1B")["choices"]
    said = job.status()
    assert said["model_status"] == "FAILED"
    assert "killed" in said["failed_reason"]
    assert said["base_url"] == "UNAVAILABLE"
    assert not (job.run_dir / "secrets").exists()
    assert "has ended already" in lab.aegis("shutdown", job.handle).err
    assert after.endpoints


def test_shutdown_takes_away_what_a_killed_launcher_left(lab: Lab) -> None:
    job = lab.submit()
    assert job.endpoints
    job.head.kill()
    wait_until(lab.is_empty, "every process is gone", 15)
    lab.aegis("shutdown", job.handle)
    assert not any(lab.work.glob("*endpoints*"))
    assert not (job.run_dir / "registry.token").exists()
    assert job.status()["model_status"] == "FAILED"


def test_a_killed_foreground_launch_leaves_no_orphan(lab: Lab) -> None:
    launch = lab.start("launch", "--config", lab.deployment())
    wait_until(lambda: lab.output(launch).out)
    launch.kill()
    wait_until(lab.is_empty, "every process is gone", 15)
    (view,) = json.loads(lab.aegis("status", "--json").out)
    assert view["model_status"] == "FAILED"


@pytest.mark.parametrize("which", ["worker", "guard"])
@pytest.mark.parametrize("port", [None, "pinned"])
def test_a_killed_agent_is_started_again(lab: Lab, which: str, port: str | None) -> None:
    job = lab.submit(instances=2, **({"port_start": free_port(2)} if port else {}))
    endpoints = job.endpoints
    engines = [job.engine(FIRST), job.engine(SECOND)]
    (agent := guard_of(job) if which == "guard" else job.find("agent.py", "--worker")[0]).kill()
    wait_until(lambda: not any(each.is_alive for each in engines), "its engines end with it", 10)
    wait_until(lambda: "started again" in job.log)
    wait_until(lambda: both_healthy(job, *engines), "all healthy again")
    assert not agent.is_alive
    wait_until(lambda: job.endpoints == endpoints, "the endpoints file follows the registry")
    assert len(job.find("agent.py")) == 2  # guard and worker
    assert chat(job.endpoints[0], "rehearsal-1B")["choices"]


def test_a_killed_registry_is_started_again(lab: Lab) -> None:
    job = lab.submit(instances=2)
    endpoints, engine = job.endpoints, job.engine(FIRST)
    (registry,) = job.find("registry", "serve")
    registry.kill()
    wait_until(lambda: "the registry ended: started again" in job.log, seconds=15)
    wait_until(lambda: both_healthy(job), "the services are there again")
    wait_until(lambda: job.endpoints == endpoints, "the endpoints file follows the registry")
    assert engine.is_alive
    # The agents tell it news too, not its journal alone.
    engine.kill()
    wait_until(lambda: job.service(FIRST)["metadata"].get("restarts") == 1)
    wait_until(lambda: both_healthy(job))
    wait_until(lambda: job.endpoints == endpoints, "the endpoints file follows the registry")


def test_everything_killed_but_the_head_comes_back(lab: Lab) -> None:
    job = lab.submit(instances=2)
    engines = [job.engine(FIRST), job.engine(SECOND)]
    for each in [*job.find("registry", "serve"), *job.find("agent.py"), *engines]:
        if each.is_alive:
            each.kill()
    wait_until(lambda: both_healthy(job, *engines), "all healthy again")
    assert chat(job.endpoints[1], "rehearsal-1B")["choices"]
