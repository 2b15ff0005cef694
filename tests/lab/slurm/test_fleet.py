"""From `aegis submit` to servers on the nodes of a real Slurm, and everything that can end them."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.conftest import wait_until

from .fleet import Fleet

if TYPE_CHECKING:
    from .lab import SlurmLab, User

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]


@pytest.fixture
def fleet(alice: User) -> Fleet:
    return Fleet(alice)


def test_two_nodes_both_on_port_8000(fleet: Fleet) -> None:
    handle, endpoints = fleet.serve(instances=2)
    assert [endpoint.partition(":")[2] for endpoint in endpoints] == ["8000", "8000"]
    assert len({endpoint.partition(":")[0] for endpoint in endpoints}) == 2
    assert all(map(fleet.answers, endpoints))
    view = fleet.view(handle)
    assert (view["model_status"], view["healthy"], view["nodes"]) == ("READY", 2, 2)
    assert view["base_url"] == f"http://{endpoints[0]}/v1"
    assert 0 < view["time_left"] <= 600
    assert (fleet.work / "aegis_endpoints.txt").read_text().split() == endpoints
    metrics = json.loads(fleet.aegis("metrics", handle, "--once", "--json").out)
    assert metrics
    assert fleet.aegis("wait", handle, "--for", "ready", "--timeout", 30).out.split() == endpoints
    fleet.aegis("shutdown", handle)
    assert fleet.wait_for(handle, "SHUTDOWN")["base_url"] in {None, "UNAVAILABLE"}
    assert not fleet.processes("node1")
    assert not (fleet.work / "aegis_endpoints.txt").exists()


def test_dry_run_is_the_script_that_runs(fleet: Fleet) -> None:
    before = sorted(fleet.user.home.rglob("*"))
    deployment = fleet.deployment()
    before = sorted({*before, fleet.work / deployment})
    script = fleet.aegis("submit", "--config", deployment, "--dry-run").out
    assert sorted(fleet.user.home.rglob("*")) == before
    handle = fleet.submit()
    number = handle.removeprefix("slurm://")
    (kept,) = (fleet.work / "logs").rglob(f"*.{number}.sh")
    assert kept.read_text() == script
    stored = fleet.lab.run("scontrol", "write", "batch_script", number, "-").out
    assert stored.strip() == script.strip()
    fleet.aegis("shutdown", handle)


def test_an_instance_over_two_nodes(fleet: Fleet) -> None:
    handle, (endpoint,) = fleet.serve(tensor_parallel_size=8)
    assert fleet.answers(endpoint)
    view = fleet.view(handle)
    assert view["nodes"] == 2
    assert {service["metadata"]["node"] for service in view["services"]} == set(_expanded(fleet, view))
    fleet.aegis("shutdown", handle)


def _log(fleet: Fleet, handle: str) -> str:
    number = handle.removeprefix("slurm://")
    return "".join(log.read_text() for log in (fleet.work / "logs").rglob(f"*.{number}.err"))


def _expanded(fleet: Fleet, view: dict[str, str]) -> list[str]:
    return fleet.lab.run("scontrol", "show", "hostnames", view["node_list"]).out.split()


def test_a_job_that_waits_says_why(fleet: Fleet) -> None:
    handle = fleet.submit(directives=["--begin=now+1hour"])
    view = fleet.wait_for(handle, "PENDING", "BeginTime")
    assert view["pending_reason"] == view["reason"]
    done = fleet.aegis("wait", handle, "--for", "ready", "--timeout", "1", code=5)
    assert "not ready after 1 s" in done.err
    assert "BeginTime" in done.err
    fleet.aegis("shutdown", handle)
    assert fleet.wait_for(handle, "SHUTDOWN", "cancelled by its user")
    fleet.aegis("wait", handle, "--for", "ready", code=1)
    fleet.aegis("wait", handle, "--for", "ended")


def test_cancelled_from_outside(fleet: Fleet) -> None:
    handle, _ = fleet.serve()
    node = fleet.view(handle)["node_list"]
    assert fleet.processes(node)
    fleet.user.run("scancel", handle.removeprefix("slurm://"))
    view = fleet.wait_for(handle, "SHUTDOWN", "cancelled")
    assert view["base_url"] in {None, "UNAVAILABLE"}
    wait_until(lambda: not fleet.processes(node), "no server is left")


def test_a_crashed_engine_is_started_again(fleet: Fleet) -> None:
    handle, (endpoint,) = fleet.serve()
    fleet.kill_server(fleet.view(handle)["node_list"])

    def again() -> bool:
        (service,) = fleet.view(handle)["services"]
        return bool(service["status"] == "healthy" and service["metadata"]["restarts"] == 1)

    wait_until(again, "healthy again")
    assert fleet.answers(endpoint)
    fleet.aegis("shutdown", handle)


def test_an_engine_that_cannot_start_ends_the_job_with_its_reason(fleet: Fleet) -> None:
    deployment = fleet.deployment(extra_sim_args=["--fail-start", "No space left on device"])
    done = fleet.aegis("submit", "--config", deployment, "--wait", code=None, timeout=120)
    assert done.code == 1, done.err
    handle = done.err.partition("submitted ")[2].split()[0]
    view = fleet.wait_for(handle, "FAILED")
    assert view["failed_reason"] == view["reason"]
    assert view["reason"].split(":")[0] in done.err
    assert view["log"] in done.err


def test_walltime(fleet: Fleet, slurm: SlurmLab) -> None:
    handle, (endpoint,) = fleet.serve(walltime="00:05:00")
    slurm.expire(handle.removeprefix("slurm://"))
    view = fleet.wait_for(handle, "SHUTDOWN", "walltime of 00:", 120)  # `expire` shortens it
    assert not fleet.answers(endpoint)
    assert view["final"]


def test_the_loss_of_a_node_leaves_the_others(fleet: Fleet, slurm: SlurmLab) -> None:
    handle, endpoints = fleet.serve(instances=2)
    head = fleet.view(handle)["host"]
    lost, kept = sorted(endpoints, key=lambda endpoint: endpoint.startswith(f"{head}:"))
    slurm.crash(lost.partition(":")[0])

    def only_one() -> bool:
        return (fleet.work / "aegis_endpoints.txt").read_text().split() == [kept]

    wait_until(only_one, "the lost server is no endpoint any more", 120)
    assert fleet.answers(kept)
    fleet.wait_for(handle, "READY")
    fleet.aegis("shutdown", handle)


def test_a_node_that_was_lost_before_its_agent_came_leaves_the_others(fleet: Fleet, slurm: SlurmLab) -> None:
    slurm.crash("node2")  # Slurm does not know it yet
    handle = fleet.submit(instances=2, nodelist="node1,node2")
    wait_until(lambda: "each node gets an srun of its own" in _log(fleet, handle), "srun has ended", 120)

    def one_serves() -> bool:
        view = fleet.view(handle)
        url = view["base_url"].removeprefix("http://").removesuffix("/v1")
        return view["model_status"] == "READY" and view["healthy"] == 1 and fleet.answers(url)

    wait_until(one_serves, "the server of the other node", 60)
    fleet.aegis("shutdown", handle)
    fleet.wait_for(handle, "SHUTDOWN")


def test_the_loss_of_the_first_node_puts_the_job_back(fleet: Fleet, slurm: SlurmLab) -> None:
    handle, (endpoint,) = fleet.serve()
    node = endpoint.partition(":")[0]
    slurm.crash(node, noticed=True)
    view = fleet.wait_for(handle, "PENDING", "", 60)
    assert view["restarts"] == 1 or view["reason"]
    number = handle.removeprefix("slurm://")
    slurm.begin(number)
    again = fleet.wait_for(handle, "READY", "", 180)
    assert again["restarts"] == 1
    assert not again["base_url"].startswith(f"http://{node}:")
    fleet.aegis("shutdown", handle)


def test_the_controller_goes_away_and_comes_back(fleet: Fleet, slurm: SlurmLab) -> None:
    handle, _ = fleet.serve()
    assert fleet.view(handle)["model_status"] == "READY"
    with slurm.without_controller():
        view = fleet.view(handle)
        assert view["model_status"] in {"READY", "UNKNOWN"}
        if view["model_status"] == "UNKNOWN":
            assert "does not answer" in view["reason"]
        assert view["answer_age"] > 0
        done = fleet.aegis("submit", "--config", fleet.deployment("other.yaml", endpoints_file="o"), code=3)
        assert "does not answer" in done.err or "controller" in done.err
    assert fleet.wait_for(handle, "READY")
    fleet.aegis("shutdown", handle)


def test_waiting_survives_a_controller_that_is_away(fleet: Fleet, slurm: SlurmLab) -> None:
    handle = fleet.submit(directives=["--begin=now+1hour"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(fleet.aegis, "wait", handle, "--for", "ready", timeout=150)
        with slurm.without_controller():
            fleet.view(handle)
        slurm.begin(handle.removeprefix("slurm://"))
        done = waiting.result()
    assert fleet.answers(done.out.strip())
    fleet.aegis("shutdown", handle)


def test_requeue(fleet: Fleet, slurm: SlurmLab) -> None:
    handle, _ = fleet.serve()
    number = handle.removeprefix("slurm://")
    slurm.run("scontrol", "requeue", number)
    wait_until(lambda: fleet.view(handle)["model_status"] == "PENDING", "back in the queue")
    slurm.begin(number, "now+3")  # a node takes no job back at once
    view = fleet.wait_for(handle, "READY", "", 120)
    assert view["restarts"] == 1
    assert fleet.answers(view["base_url"].removeprefix("http://").removesuffix("/v1"))
    fleet.aegis("shutdown", handle)


def test_fifty_jobs_are_one_question(fleet: Fleet, slurm: SlurmLab) -> None:
    directives = ["--begin=now+1hour"]
    with ThreadPoolExecutor(4) as pool:
        names = [
            fleet.deployment(f"{number}.yaml", endpoints_file=f"{number}.txt", directives=directives)
            for number in range(50)
        ]
        handles = set(pool.map(lambda name: fleet.aegis("submit", "--config", name).out.strip(), names))
    assert len(handles) == 50
    counted = fleet.user.home / "asked"
    programs = fleet.user.home / "bin"
    for program in ("squeue", "sacct", "scontrol"):
        real = Path(fleet.user.run("which", program).out.strip())
        text = f'#!/bin/sh\necho {program} >>{counted}\nexec {real} "$@"\n'
        fleet.user.transport.write(str(programs / program), text, 0o755)
    path = f"{programs}:{slurm.environ['PATH']}"
    done = fleet.aegis("status", "--json", environ={"PATH": path})
    assert {view["job_id"] for view in json.loads(done.out)} == handles
    assert counted.read_text().split() == ["squeue"]
    fleet.user.run("scancel", "--user", "alice")


def test_three_submissions_in_the_same_second(fleet: Fleet) -> None:
    names = [fleet.deployment(f"{number}.yaml", endpoints_file=f"{number}.txt") for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda name: fleet.aegis("submit", "--config", name), names))
    handles = {each.out.strip() for each in done}
    assert len(handles) == 3
    for handle in handles:
        fleet.wait_for(handle, "READY")
    for handle in handles:
        fleet.aegis("shutdown", handle)


def test_a_batch_and_the_end_of_one_component(fleet: Fleet) -> None:
    fleet.user.transport.write(str(fleet.work / "batch.yaml"), BATCH)
    words = ["--platform", "generic-slurm", "--engine", "sim", "--batch-config", "batch.yaml", "--wait"]
    done = fleet.aegis("batch-launch", "small-1B", "large-8B", *words, timeout=150)
    handle = re.search(r"slurm://\d+", done.err)
    assert handle
    job = handle[0]
    rows = {view["job_id"]: view for view in fleet.all()}
    assert set(rows) == {f"{job}+0", f"{job}+1"}
    assert {view["model_status"] for view in rows.values()} == {"READY"}
    assert rows[f"{job}+1"]["nodes"] == 2
    for view in rows.values():
        code, text = _models(fleet, view["base_url"])
        assert code == 0
        assert view["model_name"] in text
    fleet.aegis("shutdown", f"{job}+1", timeout=120)
    assert fleet.wait_for(f"{job}+1", "SHUTDOWN")
    kept = fleet.view(f"{job}+0")
    assert kept["model_status"] == "READY"
    assert _models(fleet, kept["base_url"])[0] == 0
    fleet.aegis("shutdown", job, timeout=120)
    assert fleet.wait_for(f"{job}+0", "SHUTDOWN")


def _models(fleet: Fleet, base_url: str) -> tuple[int, str]:
    done = fleet.user.run("curl", "-sSf", "--max-time", "10", f"{base_url}/models", code=None)
    return done.code, done.out


BATCH = """models:
  small-1B:
    model_family: small
    model_type: LLM
    gpus_per_node: 1
    num_nodes: 1
    vocab_size: 1000
    mem_per_node: 1G
    cpus_per_task: 1
    time: 00:10:00
    partition: a40
    resource_type: a40
    hf_model: org/small-1B
    venv: ""
  large-8B:
    model_family: large
    model_type: LLM
    gpus_per_node: 4
    num_nodes: 2
    vocab_size: 1000
    mem_per_node: 1G
    cpus_per_task: 1
    time: 00:10:00
    partition: a100
    resource_type: a100
    hf_model: org/large-8B
    vllm_args:
      --tensor-parallel-size: 8
"""
