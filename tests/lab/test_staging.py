"""Launches that bring weights to their nodes first: on one machine, over TCP, and where something is in the way."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from .conftest import chat, wait_until
from .stand_in import make_engine, make_entry
from .test_ssh_nodes import NODES, missing, ssh

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Lab

__all__ = ["ssh"]
pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@pytest.fixture
def keys(lab: Lab) -> Callable[..., dict[str, Any]]:
    """Return the keys of a deployment that stages."""
    venv, entry = make_engine(lab.path), make_entry(lab.path)

    def with_others(**others: Any) -> dict[str, Any]:
        model = {"model": "org/name", "model_source": str(entry), "instances": others.pop("instances", 1)}
        usual = {"venv": str(venv), "hf_home": str(lab.path / "hf home"), "gpus_per_node": 4}
        return {**usual, "models": [model], **others}

    return with_others


def snapshot(lab: Lab) -> Path:
    return lab.path / "hf home" / "hub" / "models--org--name" / "snapshots" / "abc"


def loaded(lab: Lab) -> list[str]:
    return (lab.path / "venv" / "calls").read_text().splitlines()


def test_servers_load_what_was_staged_and_the_next_launch_finds_it(
    lab: Lab, keys: Callable[..., Any]
) -> None:
    first = lab.submit(**keys(instances=2))
    assert len(first.endpoints) == 2
    assert chat(first.endpoints[0], "org/name")["choices"]
    assert loaded(lab) == [str(snapshot(lab))] * 2
    assert "staging 19.1 MiB to 1 node (copy: one machine)" in first.log
    wait_until(lambda: "staged 19.1 MiB to 1 of 1 nodes in" in first.log)
    lab.aegis("shutdown", first.handle)
    second = lab.submit(**keys())
    assert chat(second.endpoints[0], "org/name")["choices"]


def test_over_tcp_each_node_waits_for_its_own_and_agents_are_brought_along(
    lab: Lab, keys: Callable[..., Any]
) -> None:
    profile = {"name": "wide", "extends": "local", "nodes": 3}
    (lab.work / "wide.yaml").write_text(yaml.safe_dump(profile))
    before = set(Path("/tmp").glob("aegis-agent-*"))
    job = lab.submit(**keys(instances=12, platform="wide.yaml", stager="tcp"))
    assert len(job.endpoints) == 12
    assert "(tcp: asked for)" in job.log
    brought = set(Path("/tmp").glob("aegis-agent-*")) - before
    assert len(brought) == 1  # one machine plays all nodes
    lab.aegis("shutdown", job.handle)
    wait_until(lambda: not any(map(Path.exists, brought)))
    assert not list(lab.work.rglob(".staging-*"))


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_through_ssh(lab: Lab, keys: Callable[..., Any], ssh: Path) -> None:
    nodes = lab.path / "nodes"
    nodes.write_text("".join(f"{node}\n" * 4 for node in NODES))
    lab.environ |= {"PBS_NODEFILE": str(nodes), "PBS_JOBID": "4711.pbs"}
    profile = {"name": "site", "launcher": "ssh", "launcher_args": ["-F", str(ssh)], "node": {"devices": 4}}
    (lab.work / "site.yaml").write_text(yaml.safe_dump(profile))
    process = lab.start("launch", "--config", lab.deployment(**keys(instances=8, platform="site.yaml")))
    endpoints = wait_until(lambda: lab.output(process).out).split()
    assert {endpoint.rpartition(":")[0] for endpoint in endpoints} == set(NODES)
    assert "(tcp: ssh starts no MPI programs)" in lab.output(process).err
    wait_until(lambda: "staged 19.1 MiB to 2 of 2 nodes" in lab.output(process).err)


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_node_that_ssh_does_not_reach_is_told_of_at_once_and_the_other_serves(
    lab: Lab, keys: Callable[..., Any], ssh: Path
) -> None:
    nodes = lab.path / "nodes"
    nodes.write_text(f"{NODES[0]}\n127.0.0.9\n")  # nobody listens there
    lab.environ |= {"PBS_NODEFILE": str(nodes), "PBS_JOBID": "4711.pbs"}
    profile = {"name": "site", "launcher": "ssh", "launcher_args": ["-F", str(ssh)], "node": {"devices": 4}}
    (lab.work / "site.yaml").write_text(yaml.safe_dump(profile))
    began = time.monotonic()
    process = lab.start("launch", "--config", lab.deployment(**keys(instances=8, platform="site.yaml")))
    endpoints = wait_until(lambda: lab.output(process).out).split()
    assert time.monotonic() - began < 20
    assert {endpoint.rpartition(":")[0] for endpoint in endpoints} == {NODES[0]}
    wait_until(lambda: "staged 19.1 MiB to 1 of 2 nodes" in lab.output(process).err)
    assert "127.0.0.9: " in lab.output(process).err
    assert "ssh ended with 255: ssh: connect to host 127.0.0.9" in lab.output(process).err


@pytest.mark.parametrize("stager", ["tcp", "copy"])
def test_a_signal_in_the_middle_leaves_no_process_and_no_folder(
    lab: Lab, keys: Callable[..., Any], stager: str
) -> None:
    hub = lab.path / "hf home" / "hub"
    hub.mkdir(parents=True)
    with (hub / "models--org--name.aegis-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = lab.start("launch", "--config", lab.deployment(**keys(stager=stager)))
        wait_until(lambda: "registry http" in lab.output(process).err)
        if stager == "tcp":
            wait_until(lambda: [each for each in lab.processes() if "stager.pyz receive" in each.command])
        began = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0
        assert time.monotonic() - began < 15
        wait_until(lab.is_empty)
    assert not list(lab.work.rglob(".staging-*"))


def test_status_tells_how_far_it_is_and_a_shutdown_does_not_wait(lab: Lab, keys: Callable[..., Any]) -> None:
    hub = lab.path / "hf home" / "hub"
    hub.mkdir(parents=True)
    with (hub / "models--org--name.aegis-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another job does that stages the same
        process = lab.start("launch", "--config", lab.deployment(**keys()))
        handle = wait_until(lambda: lab.output(process).err.partition("job ")[2].partition(":")[0] + "")
        handle = "local://" + lab.output(process).err.partition("local://")[2][:6]
        view = wait_until(lambda: (v := lab.job(handle).status())["reason"] and v)
        assert (view["model_status"], view["reason"]) == ("LAUNCHING", "staging 0 %")
        service = lab.job(handle).wait_for("name-0", "pending")
        assert service["metadata"]["reason"] == "staging"
        began = time.monotonic()
        lab.aegis("shutdown", handle)
        assert process.wait(30) == 0
        assert time.monotonic() - began < 15
    assert not snapshot(lab).exists()


def test_what_cannot_be_staged_is_the_reason_of_the_failure(lab: Lab, keys: Callable[..., Any]) -> None:
    own = lab.path / "hf home" / "hub" / "models--org--name"
    own.mkdir(parents=True)
    (own / "mine").write_text("")
    done = lab.aegis("launch", "--config", lab.deployment(**keys()), code=1)
    assert f"{own}: exists and was not staged by aegis" in done.err
    assert "the instance failed" in done.err
    assert [path.name for path in own.iterdir()] == ["mine"]
    assert not (lab.path / "venv" / "calls").exists()
