"""One machine that plays several nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from .conftest import chat, wait_until

if TYPE_CHECKING:
    from .conftest import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
HEAD, MEMBER = "rehearsal-1B-0", "rehearsal-1B-0.rank1"


@pytest.fixture
def cluster(lab: Lab) -> str:
    """A platform of four nodes with two devices each."""
    profile = {"name": "cluster", "extends": "local", "nodes": 4, "node": {"devices": 2}}
    (lab.work / "cluster.yaml").write_text(yaml.safe_dump(profile))
    return "cluster.yaml"


def test_instances_have_the_addresses_of_their_nodes(lab: Lab, cluster: str) -> None:
    job = lab.submit(platform=cluster, instances=4, tensor_parallel_size=2)
    hosts = [line.rpartition(":")[0] for line in job.endpoints]
    assert len(set(hosts)) == 4
    assert all(host.startswith("127.0.0.") for host in hosts)
    assert len({each["metadata"]["node"] for each in job.services.values()}) == 4
    assert len(job.find("agent.py", "--worker")) == 4
    for endpoint in job.endpoints:
        assert chat(endpoint, "rehearsal-1B")["choices"]
    lab.aegis("shutdown")
    assert lab.is_empty()


def test_an_instance_over_two_nodes_lives_and_dies_as_one(lab: Lab, cluster: str) -> None:
    job = lab.submit(platform=cluster, instances=1, tensor_parallel_size=4)
    assert len(job.endpoints) == 1
    endpoints = job.endpoints
    assert job.states() == {HEAD: "healthy", MEMBER: "healthy"}
    assert job.status()["healthy"] == 1
    old = [job.engine(HEAD), job.engine(MEMBER)]
    old[1].kill()
    wait_until(lambda: job.endpoints == [], "the endpoint goes")

    def anew() -> bool:
        services = job.services
        pids = {each["metadata"].get("pid") for each in services.values()}
        healthy = job.states() == {HEAD: "healthy", MEMBER: "healthy"}
        return healthy and not pids & {None, *(each.pid for each in old)}

    wait_until(anew, "both members are new and healthy", 60)
    wait_until(lambda: job.endpoints == endpoints, seconds=5)
    assert not any(each.is_alive for each in old)
    assert chat(endpoints[0], "rehearsal-1B")["choices"]


def test_a_killed_agent_of_one_node_leaves_the_others_alone(lab: Lab, cluster: str) -> None:
    job = lab.submit(platform=cluster, instances=4, tensor_parallel_size=2)
    endpoints = job.endpoints
    others = [job.engine(f"rehearsal-1B-{index}") for index in (0, 2, 3)]
    old = job.engine("rehearsal-1B-1")
    guard = next(each for each in job.find("agent.py", "--node local-1 ") if "--worker" not in each.command)
    guard.kill()
    wait_until(lambda: not old.is_alive)
    wait_until(lambda: job.engine("rehearsal-1B-1").pid not in {None, old.pid})
    job.wait_for("rehearsal-1B-1", "healthy")
    wait_until(lambda: job.endpoints == endpoints, seconds=5)
    assert all(each.is_alive for each in others)


def test_more_nodes_than_there_are(lab: Lab, cluster: str) -> None:
    said = lab.aegis(
        "submit", "--config", lab.deployment(platform=cluster, instances=5, tensor_parallel_size=2), code=2
    )
    assert "4" in said.err
    assert "5" in said.err
