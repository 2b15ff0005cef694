"""Weights on the nodes of a real Slurm, each with a file system of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from aegis.staging.listing import BLOCK
from tests.lab.conftest import wait_until
from tests.lab.stand_in import make_engine, make_entry, make_tarball

from .fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .lab import User

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]
HOME = "/dev/shm/hf home"
ENTRY = f"{HOME}/hub/models--org--name"
SNAPSHOT = f"{ENTRY}/snapshots/abc"
NODES = ("node1", "node2")
SIZE = 20_000_000 + 2 + 3  # of the weights, config.json and the reference


@pytest.fixture
def fleet(alice: User) -> Iterator[Fleet]:
    fleet = Fleet(alice)
    # the nodes share a kernel, which UCX takes for sharing memory, too
    alice.environ["UCX_TLS"] = "tcp,self"
    yield fleet
    fleet.lab.settle()
    for node in fleet.lab.names:
        on(fleet, node, "bash", "-c", "rm -rf /dev/shm/*")


@pytest.fixture
def keys(fleet: Fleet) -> Callable[..., dict[str, Any]]:
    """Return the keys of a deployment of one server per node."""
    venv, entry = make_engine(fleet.work), make_entry(fleet.work)
    venv.chmod(0o777)  # its servers write down what they load

    def with_others(**others: Any) -> dict[str, Any]:
        return {
            "model": "org/name",
            "engine": "vllm",
            "model_source": str(entry),
            "venv": str(venv),
            "hf_home": HOME,
            "instances": 2,
            **others,
        }

    return with_others


def log_of(fleet: Fleet, handle: str) -> str:
    number = handle.removeprefix("slurm://")
    (log,) = (fleet.work / "logs").rglob(f"*.{number}.err")
    return log.read_text()


def loaded(fleet: Fleet) -> list[str]:
    return (fleet.work / "venv" / "calls").read_text().splitlines()


def on(fleet: Fleet, node: str, *argv: str, code: int | None = 0) -> str:
    return fleet.lab.run(*argv, host=node, code=code).out


def blocks_on(fleet: Fleet, node: str) -> int:
    """Return how many blocks of the large model a node has noted so far."""
    log = f"{HOME}/hub/models--org--large.aegis-part/.aegis-blocks"
    return len(on(fleet, node, "tail", "-n", "+2", log, code=None).splitlines())


@contextlib.contextmanager
def slow(fleet: Fleet, *nodes: str) -> Iterator[None]:
    """Let 12 MB/s through the cables to some nodes."""
    for node in nodes:
        cable = ("dev", f"v{node.removeprefix('node')}", "root")
        on(
            fleet,
            "login",
            "tc",
            "qdisc",
            "add",
            *cable,
            "tbf",
            *["rate", "100mbit", "burst", "256k", "latency", "50ms"],
        )
    try:
        yield
    finally:
        for node in nodes:  # the cable of a node that has crashed is gone
            on(
                fleet,
                "login",
                "tc",
                "qdisc",
                "del",
                "dev",
                f"v{node.removeprefix('node')}",
                "root",
                code=None,
            )


@contextlib.contextmanager
def held(fleet: Fleet, node: str, destination: str) -> Iterator[None]:
    """Hold a destination on a node, as another job does that stages the same."""
    script = 'mkdir -p -- "${0%/*}" && exec flock -- "$0.aegis-lock" sh -c "echo held; cat"'
    words = [*fleet.lab.enter(node, "alice"), "bash", "-c", script, destination]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        yield


# Documented for job scripts: a step that has it gets as many CPUs for each task, and its node's others go to other steps
IN_A_JOB = 'export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; echo "job $SLURM_JOB_ID" >&2; exec "$@"'


def stage(fleet: Fleet, file: str, *options: str, code: int = 0) -> dict[str, Any]:
    """Run `aegis stage` in an allocation of two nodes with 8 CPUs each, and return what it says of them."""
    asked = (f"--nodelist={','.join(NODES)}", "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=2")
    command = (sys.executable, "-P", "-m", "aegis", "stage", "--config", file, "--json", *options)
    words = ("salloc", "--quiet", "--partition=all", *asked, "bash", "-c", IN_A_JOB, "job", *command)
    done = fleet.user.run(*words, code=code)
    assert "Traceback" not in done.err
    found: dict[str, Any] = json.loads(done.out)
    return {**found, "err": done.err, "nodes": {each["host"]: each for each in found["nodes"]}}


def steps(fleet: Fleet, job: str) -> list[int]:
    """Return the CPUs that each step of a job had; accounts take a moment."""
    asked = ("sacct", f"--jobs={job}", "--noheader", "--parsable2", "--format=jobid,alloccpus")

    def found() -> list[int]:
        rows = [line.split("|") for line in fleet.user.run(*asked).out.split()]
        return [int(count) for name, count in rows if name.startswith(f"{job}.")]

    counts: list[int] = wait_until(found)
    return counts


@pytest.mark.parametrize("stager", ["tcp", "mpi"])
def test_staging_alone_is_repeated_verified_and_taken_back(
    fleet: Fleet, keys: Callable[..., Any], stager: str
) -> None:
    file = fleet.deployment(**keys(stager=stager))
    first = stage(fleet, file)
    assert (first["stager"], set(first["nodes"])) == (stager, set(NODES))
    assert first["bytes_read"] == SIZE  # once, and not by each node
    assert [(each["ok"], each["skipped"], each["bytes"]) for each in first["nodes"].values()] == [
        (True, False, SIZE)
    ] * 2
    if fleet.lab.accounting:
        assert steps(fleet, first["err"].partition("job ")[2].split()[0]) == [16]
    again = stage(fleet, file)
    assert (again["bytes_read"], [each["skipped"] for each in again["nodes"].values()]) == (0, [True] * 2)
    assert all(each["ok"] for each in stage(fleet, file, "--verify")["nodes"].values())
    on(fleet, "node2", "bash", "-c", f"printf X | dd of='{ENTRY}/blobs/b2' conv=notrunc bs=1 seek=12345678")
    differs = stage(fleet, file, "--verify", code=7)
    assert "1 of 2 nodes differ" in differs["err"]
    assert [each["ok"] for each in differs["nodes"].values()] == [True, False]
    assert "blobs/b2" in differs["nodes"]["node2"]["error"]
    assert all(each["ok"] for each in stage(fleet, file, "--clean")["nodes"].values())
    for node in NODES:
        assert on(fleet, node, "find", HOME, "-type", "f").split() == []


@pytest.mark.parametrize("stager", ["tcp", None])
def test_each_node_gets_its_weights_and_serves_them(
    fleet: Fleet, keys: Callable[..., Any], stager: str | None
) -> None:
    handle, endpoints = fleet.serve(**keys(**({"stager": stager} if stager else {})))
    assert len(endpoints) == 2
    assert loaded(fleet) == [SNAPSHOT] * 2
    wait_until(lambda: "staged 19.1 MiB to 2 of 2 nodes" in log_of(fleet, handle))
    fleet.aegis("shutdown", handle)
    fleet.wait_for(handle, "SHUTDOWN")
    assert not list(fleet.work.rglob(".staging-*"))


def test_an_environment_is_served_from_each_node_and_made_to_fit_it_once(
    fleet: Fleet, keys: Callable[..., Any]
) -> None:
    tarball = make_tarball(fleet.work)
    site = {"extends": "generic-slurm", "node": {"local_path": "/dev/shm/local"}}
    fleet.user.transport.write(str(fleet.work / "site.yaml"), yaml.safe_dump(site))
    wanted = keys(conda_env=str(tarball), platform="site.yaml", instances=4, tensor_parallel_size=2)
    del wanted["venv"]
    handle, endpoints = fleet.serve(**wanted)
    assert len(endpoints) == 4
    assert sorted((fleet.work / "unpacked").read_text().split()) == list(NODES)
    started = {tuple(line.split()) for line in (fleet.work / "started").read_text().splitlines()}
    ((program, prefix),) = started
    assert prefix.startswith("/dev/shm/local/aegis-env-5001/")
    assert program == f"{prefix}/bin/vllm"
    assert not (fleet.work / "local").exists()
    assert "agents start from" not in log_of(fleet, handle)  # they were brought along
    brought = [on(fleet, node, "bash", "-c", "ls -d /dev/shm/local/aegis-agent-*") for node in NODES]
    assert all(brought)
    fleet.aegis("shutdown", handle)
    fleet.wait_for(handle, "SHUTDOWN")
    for node in NODES:  # they were asked to end, and took that away
        assert "aegis-agent-" not in on(fleet, node, "ls", "/dev/shm/local")


@pytest.mark.parametrize("stager", ["tcp", "mpi"])
def test_small_models_serve_while_large_ones_are_on_their_way(
    fleet: Fleet, keys: Callable[..., Any], stager: str
) -> None:
    sources = {
        "large": make_entry(fleet.work, 40_000_000, "large"),
        "name": fleet.work / "shared disk" / "models--org--name",
    }
    file = fleet.deployment(**keys(stager=stager))
    wanted = yaml.safe_load((fleet.work / file).read_text())
    shared = {
        key: wanted.pop(key)
        for key in ("model", "model_source", "tensor_parallel_size", "engine", "instances")
    }
    shared["tensor_parallel_size"] = 2
    wanted["models"] = [
        {**shared, "model": f"org/{name}", "model_source": str(source), "instances": count}
        for (name, source), count in zip(sources.items(), (3, 1), strict=True)
    ]
    fleet.user.transport.write(str(fleet.work / file), yaml.safe_dump(wanted))
    with held(fleet, "node2", f"{HOME}/hub/models--org--large"):
        handle = fleet.aegis("submit", "--config", file).out.strip()
        there = {"large-0": "healthy", "large-1": "healthy", "large-2": "pending", "name-0": "healthy"}
        wait_until(lambda: fleet.services(handle) == there)
        assert "staged " not in log_of(fleet, handle)
    wait_until(lambda: fleet.services(handle) == dict.fromkeys(there, "healthy"))
    wait_until(lambda: "staged 57.2 MiB to 2 of 2 nodes" in log_of(fleet, handle))
    log = log_of(fleet, handle)
    assert log.index("name-0 healthy") < log.index("staged 57.2 MiB")
    fleet.aegis("shutdown", handle)


@pytest.mark.parametrize("stager", ["tcp", None])
def test_a_node_that_crashes_while_it_is_staged_to_is_given_up(
    fleet: Fleet, keys: Callable[..., Any], stager: str | None
) -> None:
    source = make_entry(fleet.work, 100_000_000, "large")
    with slow(fleet, "node2"):
        handle = fleet.submit(**keys(model="org/large", model_source=str(source), stager=stager))
        wait_until(lambda: list(fleet.services(handle).values()) == ["pending"] * 2)
        wait_until(lambda: blocks_on(fleet, "node2") > 1)
        fleet.lab.crash("node2")
        fleet.wait_for(handle, "READY")
    wait_until(lambda: "node2: " in log_of(fleet, handle))
    assert ("going on in another way" in log_of(fleet, handle)) == (stager is None)
    view = fleet.view(handle)
    assert (view["healthy"], view["instances"]) == (1, 2)
    fleet.aegis("shutdown", handle)


def test_a_shutdown_ends_the_staging_and_the_next_run_goes_on_from_there(
    fleet: Fleet, keys: Callable[..., Any]
) -> None:
    source = make_entry(fleet.work, 160_000_000, "large")
    wanted = keys(model="org/large", model_source=str(source), stager="tcp")
    with slow(fleet, *NODES):
        handle = fleet.submit(**wanted)
        wait_until(lambda: blocks_on(fleet, "node1") > 2)
        assert fleet.wait_for(handle, "LAUNCHING", "staging ")
        began = time.monotonic()
        fleet.aegis("shutdown", handle)
        fleet.wait_for(handle, "SHUTDOWN")
        assert time.monotonic() - began < 10
    for node in NODES:
        on(fleet, node, "pgrep", "-u", "alice", "-f", "stager.pyz|bcast", code=1)  # none
    assert not list(fleet.work.rglob(".staging-*"))
    assert blocks_on(fleet, "node1") > 2
    rest = stage(fleet, fleet.deployment(**wanted))
    assert rest["nodes"]["node1"]["bytes"] < 160_000_000 - BLOCK


def test_a_node_without_room_is_given_up_and_the_other_serves(fleet: Fleet, keys: Callable[..., Any]) -> None:
    on(fleet, "node2", "mkdir", "-p", HOME)
    on(fleet, "node2", "mount", "-t", "tmpfs", "-o", "size=8M,mode=1777", "small", HOME)
    try:
        handle = fleet.submit(**keys(nodelist="node1,node2"))
        view = fleet.wait_for(handle, "READY")
        wait_until(lambda: "node2: " in log_of(fleet, handle))
        assert " GiB free and needs " in log_of(fleet, handle)
        view = wait_until(lambda: (found := fleet.view(handle))["reason"] and found)
        assert (view["healthy"], view["instances"]) == (1, 2)
        assert "1 of 2 instances failed" in view["reason"]
        fleet.aegis("shutdown", handle)
    finally:
        on(fleet, "node2", "umount", HOME)
