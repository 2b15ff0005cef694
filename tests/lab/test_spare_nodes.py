"""Nodes to spare: one takes the place of a node that is lost. One machine plays them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from tests.ports import free_port

from .conftest import chat, wait_until

if TYPE_CHECKING:
    from .conftest import Job, Lab, Process

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]


@pytest.fixture
def cluster(lab: Lab) -> str:
    """A platform of two nodes with two devices each."""
    profile = {"name": "cluster", "extends": "local", "nodes": 2, "node": {"devices": 2}}
    (lab.work / "cluster.yaml").write_text(yaml.safe_dump(profile))
    return "cluster.yaml"


def lose(job: Job, node: str) -> None:
    """Kill agent and servers of a node as often as it is started again."""
    killed: set[int] = set()

    def worker() -> Process | None:
        agents = job.find("agent.py", f"--node {node} ", "--worker")
        return next((each for each in agents if each.pid not in killed), None)

    for _ in range(4):
        found = wait_until(worker, f"an agent on {node}")
        killed.add(found.pid)
        found.kill()
    wait_until(lambda: f"the agent of node {node} ended 4 times" in job.log)


def test_a_spare_node_takes_over_and_the_job_goes_on(lab: Lab, cluster: str) -> None:
    job = lab.submit(platform=cluster, instances=2, tensor_parallel_size=2, spare_nodes=1)
    assert "on 2 nodes, and 1 to spare" in job.log
    assert len(job.find("agent.py", "--worker")) == 3
    first, lost = job.endpoints
    other = job.engine("rehearsal-1B-0")
    lose(job, "local-1")
    wait_until(lambda: "rehearsal-1B-1 starts on node local-2" in job.log)
    wait_until(lambda: len(job.endpoints) == 2 and lost not in job.endpoints, "the endpoints follow")
    assert job.endpoints[0] == first
    assert job.endpoints[1].startswith("127.0.0.3:")
    assert other.is_alive
    assert chat(job.endpoints[1], "rehearsal-1B")["choices"]
    view = job.status()
    assert (view["model_status"], view["healthy"], view["instances"]) == ("READY", 2, 2)
    assert job.service("rehearsal-1B-1")["metadata"]["node"] == "local-2"
    said = lab.aegis("scale", job.handle, "--instances", 3, code=2).err  # the lost node counts no more
    assert "none is free" in said
    guard = next(each for each in job.find("agent.py", "--node local-2 ") if "--worker" not in each.command)
    guard.kill()  # what is started again there knows what was added
    wait_until(lambda: "the agent of node local-2 ended" in job.log)
    wait_until(lambda: job.log.count("rehearsal-1B-1 healthy") == 3, "it serves once more")


def test_an_instance_over_nodes_goes_on_with_the_spare_one(lab: Lab, cluster: str) -> None:
    job = lab.submit(platform=cluster, tensor_parallel_size=4, spare_nodes=1, port_start=free_port())
    lose(job, "local-0")
    wait_until(lambda: "rehearsal-1B-0 starts on node local-2" in job.log)
    wait_until(lambda: job.endpoints and job.endpoints[0].startswith("127.0.0.3:"), "it serves from there")
    assert chat(job.endpoints[0], "rehearsal-1B")["choices"]
    assert job.states() == {"rehearsal-1B-0": "healthy", "rehearsal-1B-0.rank1": "healthy"}


def test_a_scheduler_is_asked_for_the_spare_nodes_too(lab: Lab) -> None:
    profile = {"name": "site", "scheduler": "slurm", "launcher": "srun", "node": {"devices": 4}}
    (lab.work / "site.yaml").write_text(yaml.safe_dump(profile))
    file = lab.deployment(platform="site.yaml", instances=2, tensor_parallel_size=4, spare_nodes=3)
    script = lab.aegis("submit", "--config", file, "--dry-run").out
    assert "#SBATCH --nodes=5\n" in script
