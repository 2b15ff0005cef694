"""The Python API on a real Slurm: one program, run by a user of the login host."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from .fleet import Fleet

if TYPE_CHECKING:
    from .lab import User

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

MODELS = """\
models:
  tiny-a: &tiny
    model_family: tiny
    model_type: LLM
    gpus_per_node: 4
    num_nodes: 1
    vocab_size: 1000
    time: "00:10:00"
    mem_per_node: 1G
    partition: all
    engine: sim
    hf_model: nobody/tiny
    vllm_args: {--tensor-parallel-size: 4}
  tiny-b: *tiny
"""

BATCH = """\
import aegis, json
from threading import Thread
client = aegis.Client()
response = client.batch_launch_models(["tiny-a", "tiny-b"])
parts = [f"{response.slurm_job_id}+{k}" for k in range(2)]
ready = []
threads = [Thread(target=lambda part=part: ready.append(client.wait_until_ready(part, 120))) for part in parts]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
metrics = [client.get_metrics(part).metrics for part in parts]
endpoints = [client.endpoints(part) for part in parts]
running = client.fetch_running_jobs()
whole = client.endpoints(response.slurm_job_id)
client.shutdown_model(response.slurm_job_id)
print(json.dumps({
    "config": response.config,
    "names": response.model_names,
    "ready": sorted([each.model_name, each.server_status.value, each.job_state] for each in ready),
    "totals": [each["total_generation_tokens"] for each in metrics],
    "endpoints": endpoints,
    "whole": whole,
    "running": sorted(running),
    "left": client.fetch_running_jobs(),
    "after": [client.get_status(part).server_status.value for part in parts],
}))
"""

WAITERS = """\
import aegis, asyncio, json, subprocess, sys, time
from pathlib import Path
client = aegis.AsyncClient()
counted = Path("counted")

async def main():
    deployment = {"model": "m/x", "engine": "sim", "platform": "generic-slurm", "directives": ["--hold"],
                  "walltime": "00:10:00", "endpoints_file": "{run_dir}/endpoints.txt", "log_dir": "logs"}
    handles = [await client.submit(deployment) for _ in range(12)]
    counted.write_text("")
    began = time.monotonic()
    waits = [asyncio.create_task(client.wait_until_ready(handle, 60, 5)) for handle in handles]
    await asyncio.sleep(12)
    asked = counted.read_text().split()
    state = await client.get_status(handles[0])
    for wait in waits:
        wait.cancel()
    print(json.dumps({"asked": asked, "seconds": time.monotonic() - began, "reason": state.pending_reason}))
    subprocess.run(["scancel", *(handle.partition("://")[2] for handle in handles)], check=True)

asyncio.run(main())
"""


@pytest.fixture
def fleet(alice: User) -> Fleet:
    return Fleet(alice)


def run(user: User, program: str, **environ: str) -> dict[str, Any]:
    done = user.run(sys.executable, "-c", program, environ=environ, timeout=200)
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_two_models_are_launched_as_one_job_and_used(fleet: Fleet) -> None:
    user = fleet.user
    user.transport.write(str(user.work / "models.yaml"), MODELS)
    site = {"VEC_INF_CONFIG": str(user.work / "models.yaml"), "AEGIS_PLATFORM": "generic-slurm"}
    found = run(user, BATCH, **site, AEGIS_LOG_DIR=str(user.work / "logs"))
    number = found["config"]["slurm_job_id"]
    parts = [f"{number}+0", f"{number}+1"]
    assert found["names"] == ["tiny-a", "tiny-b"]
    assert found["config"]["slurm_job_name"] == "BATCH-tiny-a-tiny-b"
    assert found["config"]["models"]["tiny-b"]["num_nodes"] == 1
    assert found["ready"] == [["tiny-a", "READY", "RUNNING"], ["tiny-b", "READY", "RUNNING"]]
    assert found["running"] == parts
    assert [len(each) for each in found["endpoints"]] == [1, 1]
    assert found["whole"] == [line for each in found["endpoints"] for line in each]
    assert all(total > 0 for total in found["totals"])
    assert found["left"] == []
    assert found["after"] == ["SHUTDOWN", "SHUTDOWN"]


def test_many_waits_ask_as_one(fleet: Fleet) -> None:
    user = fleet.user
    counter = f'#!/bin/sh\necho squeue >>{user.work}/counted\nexec /usr/bin/squeue "$@"\n'
    user.transport.write(str(user.home / "bin" / "squeue"), counter, 0o755)
    path = f"{user.home / 'bin'}:{fleet.lab.environ['PATH']}"
    found = run(user, WAITERS, PATH=path)
    assert found["reason"]
    # gaps of 2, 3 and 4.5 s and then of 5 s: a wait asks 4 times in 12 s, and once more for the state at the end
    assert 3 <= len(found["asked"]) <= 6, found
