"""From `aegis submit` to servers on the nodes of a PBS, and everything that can end them."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.lab.conftest import chat, request, wait_until
from tests.ports import free_port

from .lab import NODES, can_rename_hosts

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.conftest import Answer

    from .lab import PbsLab

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not can_rename_hosts(), reason="no right to open a UTS namespace"),
]


class Fleet:
    """What a user of this PBS submits, and how it looks to him."""

    def __init__(self, pbs: PbsLab) -> None:
        self.pbs = pbs
        self.lab = pbs.lab
        self.work = pbs.lab.work
        self.site = str(pbs.profile())

    def deployment(self, name: str = "deployment.yaml", **keys: Any) -> Path:
        """Write a deployment of simulated servers, one of which fills a node."""
        usual = {"platform": self.site, "queue": "workq", "walltime": "00:10:00", "tensor_parallel_size": 4}
        return self.lab.deployment(name, **{**usual, "startup_timeout": 60, **keys})

    def submit(self, *words: object, name: str = "deployment.yaml", **keys: Any) -> str:
        """Submit a deployment, and return the job's handle."""
        file = self.deployment(name, **{"endpoints_file": f"{name}.txt", **keys})
        return self.lab.aegis("submit", "--config", file, *words).out.strip()

    def serve(self, **keys: Any) -> tuple[str, list[str]]:
        """Submit a deployment and wait for it; return handle and endpoints."""
        done = self.lab.aegis("submit", "--config", self.deployment(**keys), "--wait", timeout=120)
        return handle_in(done), done.out.split()

    def view(self, handle: str) -> dict[str, Any]:
        """Return the job as `aegis status` shows it."""
        found: dict[str, Any] = json.loads(self.lab.aegis("status", handle, "--json").out)
        return found

    def wait_for(self, handle: str, status: str, words: str = "", seconds: float = 60.0) -> dict[str, Any]:
        """Return the job when it has a status, and some words in its reason."""

        told = {"model_status": "", "reason": ""}

        def seen() -> bool:
            told.update(self.view(handle))
            return told["model_status"] == status and words in told["reason"]

        try:
            wait_until(seen, f"{handle} {status} {words}", seconds)
        except pytest.fail.Exception as error:
            pytest.fail(f"{error}; it is {told['model_status']}: {told['reason']}")
        return told

    def servers(self) -> list[int]:
        """Return the live engines."""
        return [each.pid for each in self.lab.processes() if "aegis sim " in each.command]


def handle_in(done: Answer) -> str:
    return done.err.partition("submitted ")[2].split()[0]


@pytest.fixture
def fleet(pbs: PbsLab) -> Fleet:
    return Fleet(pbs)


def test_two_nodes_with_servers_on_both(fleet: Fleet) -> None:
    handle, endpoints = fleet.serve(instances=2)
    assert handle == f"pbs://1025.{fleet.pbs.settings.server}"
    assert [endpoint.partition(":")[0] for endpoint in endpoints] == list(NODES[:2])
    for endpoint in endpoints:
        assert chat(endpoint, "rehearsal-1B")["choices"]
    view = fleet.view(handle)
    assert (view["model_status"], view["healthy"], view["nodes"]) == ("READY", 2, 2)
    assert view["base_url"] == f"http://{endpoints[0]}/v1"
    assert 0 < view["time_left"] <= 600
    fleet.lab.aegis("shutdown", handle)
    assert fleet.wait_for(handle, "SHUTDOWN")["base_url"] in {None, "UNAVAILABLE"}
    wait_until(lambda: not fleet.servers(), "no server is left")


def test_dry_run_is_the_script_that_runs(fleet: Fleet) -> None:
    file = fleet.deployment(queue="stopped")
    before = sorted(fleet.lab.path.rglob("*"))
    script = fleet.lab.aegis("submit", "--config", file, "--dry-run").out
    assert sorted(fleet.lab.path.rglob("*")) == before
    handle = fleet.lab.aegis("submit", "--config", file).out.strip()
    (kept,) = fleet.work.rglob("*.1025.aurora-pbs-0001.sh")
    assert kept.read_text() == script
    assert json.loads((fleet.pbs.spool / "state.json").read_text())["jobs"][0]["script"] == script
    fleet.lab.aegis("shutdown", handle)


def test_an_instance_over_two_nodes(fleet: Fleet) -> None:
    # its ports cannot move, and here all nodes share them
    handle, (endpoint,) = fleet.serve(tensor_parallel_size=8, port_start=free_port(128))
    assert chat(endpoint, "rehearsal-1B")["choices"]
    view = fleet.view(handle)
    assert {service["metadata"]["node"] for service in view["services"]} == set(NODES[:2])
    fleet.lab.aegis("shutdown", handle)


def test_a_job_with_work_ends_when_that_is_done(fleet: Fleet) -> None:
    (fleet.work / "rows.csv").write_text("text\n" + "".join(f"word {number}\n" for number in range(40)))
    handle = fleet.submit(
        instances=2, map="rows.csv --output answers.jsonl --prompt 'Say {text}' --max-tokens 4"
    )
    assert fleet.wait_for(handle, "SHUTDOWN")["reason"] == "all 40 are done"
    ids = [json.loads(line)["custom_id"] for line in (fleet.work / "answers.jsonl").read_text().splitlines()]
    assert ids == [str(number + 1) for number in range(40)]
    wait_until(lambda: not fleet.servers(), "no server is left")


def test_what_is_left_at_the_end_is_done_by_a_job_that_is_submitted_then(fleet: Fleet) -> None:
    (fleet.work / "rows.csv").write_text("text\n" + "".join(f"word {number}\n" for number in range(30)))
    words = "rows.csv --output answers.jsonl --prompt 'Say {text}' --max-tokens 4 --concurrency 1"
    first = fleet.submit(
        map=f"{words} --walltime 00:00:06 --grace 1 --resubmit", extra_sim_args=["--ttft-ms", "300"]
    )
    assert "left; queued again" in fleet.wait_for(first, "SHUTDOWN")["reason"]
    wait_until((fleet.work / "answers.jsonl").exists, "the others have done what was left", 90)
    ids = [json.loads(line)["custom_id"] for line in (fleet.work / "answers.jsonl").read_text().splitlines()]
    assert ids == [str(number + 1) for number in range(30)]
    jobs = [json.loads(path.read_text()) for path in (fleet.work / "logs").rglob("*/*.aurora-pbs-0001.json")]
    assert first in {job["predecessor"] for job in jobs}
    for job in jobs:
        fleet.wait_for(job["job"], "SHUTDOWN")
    assert not fleet.servers()


def test_a_job_that_waits_says_why(fleet: Fleet) -> None:
    handle = fleet.submit(queue="stopped")
    view = fleet.wait_for(handle, "PENDING", "Queue not started")
    assert view["pending_reason"] == view["reason"]
    done = fleet.lab.aegis("wait", handle, "--for", "ready", "--timeout", "1", code=5)
    assert "Queue not started" in done.err
    fleet.lab.aegis("shutdown", handle)
    assert fleet.wait_for(handle, "SHUTDOWN", "deleted")
    fleet.lab.aegis("wait", handle, "--for", "ready", code=1)
    fleet.lab.aegis("wait", handle, "--for", "ended")


def test_waiting_for_what_a_routing_queue_rejects(fleet: Fleet) -> None:
    file = fleet.deployment(queue="prod", walltime="10:00:00")
    done = fleet.lab.aegis("submit", "--config", file, "--wait", code=1)
    assert "rejected by every destination of the routing queue prod" in done.err


def test_deleted_from_outside(fleet: Fleet) -> None:
    handle, _ = fleet.serve()
    assert fleet.servers()
    fleet.pbs.run("qdel", handle.removeprefix("pbs://"))
    fleet.wait_for(handle, "SHUTDOWN")
    wait_until(lambda: not fleet.servers(), "no server is left")


def test_a_crashed_engine_is_started_again(fleet: Fleet) -> None:
    handle, (endpoint,) = fleet.serve()
    (service,) = fleet.view(handle)["services"]
    os.kill(service["metadata"]["pid"], signal.SIGKILL)

    def again() -> bool:
        (service,) = fleet.view(handle)["services"]
        return bool(service["status"] == "healthy" and service["metadata"]["restarts"] == 1)

    wait_until(again, "healthy again")
    assert chat(endpoint, "rehearsal-1B")["choices"]


def test_an_engine_that_cannot_start_ends_the_job_with_its_reason(fleet: Fleet) -> None:
    file = fleet.deployment(extra_sim_args=["--fail-start", "No space left on device"])
    done = fleet.lab.aegis("submit", "--config", file, "--wait", code=1, timeout=120)
    view = fleet.wait_for(handle_in(done), "FAILED")
    assert view["failed_reason"] == view["reason"]
    assert view["reason"].split(":")[0] in done.err


def test_walltime(fleet: Fleet) -> None:
    handle, (endpoint,) = fleet.serve(walltime="00:00:08")
    fleet.wait_for(handle, "SHUTDOWN", "walltime of 00:00:08")
    assert request(endpoint, "GET", "/health")[0] == 0
    wait_until(lambda: not fleet.servers(), "no server is left")


def test_the_loss_of_a_node_leaves_the_others(fleet: Fleet) -> None:
    handle, endpoints = fleet.serve(instances=2)
    fleet.pbs.lose(NODES[1])
    file = fleet.work / "aegis_endpoints.txt"
    wait_until(
        lambda: file.read_text().split() == endpoints[:1], "the lost server is no endpoint any more", 90
    )
    assert chat(endpoints[0], "rehearsal-1B")["choices"]
    fleet.wait_for(handle, "READY")
    fleet.lab.aegis("shutdown", handle)


def test_the_loss_of_the_first_node_puts_the_job_back(fleet: Fleet) -> None:
    handle, (endpoint,) = fleet.serve()
    others = [fleet.pbs.qsub("sleep 300", "-l", "select=1:ncpus=208", "-q", "workq") for _ in NODES[1:]]
    wait_until(lambda: all(fleet.pbs.jobs()[each]["job_state"] == "R" for each in others))
    fleet.pbs.lose(NODES[0])
    fleet.wait_for(handle, "PENDING", "a node failed")
    fleet.pbs.run("qdel", others[0])
    view = fleet.wait_for(handle, "READY")
    assert view["restarts"] == 1
    assert not view["base_url"].startswith(f"http://{endpoint}")
    assert chat(view["base_url"].removeprefix("http://").removesuffix("/v1"), "rehearsal-1B")["choices"]
    fleet.lab.aegis("shutdown", handle)


def test_the_server_goes_away_and_comes_back(fleet: Fleet) -> None:
    handle, (endpoint,) = fleet.serve()
    fleet.pbs.down()
    view = fleet.view(handle)
    assert view["model_status"] in {"READY", "UNKNOWN"}
    assert chat(endpoint, "rehearsal-1B")["choices"]
    other = fleet.deployment("other.yaml", endpoints_file="o")
    assert "does not answer" in fleet.lab.aegis("submit", "--config", other, code=3).err
    fleet.pbs.up()
    fleet.wait_for(handle, "READY")
    fleet.lab.aegis("shutdown", handle)


def test_waiting_survives_a_server_that_is_away(fleet: Fleet) -> None:
    handle = fleet.submit(directives=["-h"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(fleet.lab.aegis, "wait", handle, "--for", "ready", timeout=150)
        fleet.pbs.down()
        time.sleep(1)
        fleet.pbs.up()
        fleet.pbs.run("qrls", handle.removeprefix("pbs://"))
        endpoint = waiting.result().out.strip()
    assert chat(endpoint, "rehearsal-1B")["choices"]
    fleet.lab.aegis("shutdown", handle)


def test_fifty_jobs_are_one_question(fleet: Fleet) -> None:
    with ThreadPoolExecutor(2) as pool:
        names = [f"{number}.yaml" for number in range(50)]
        handles = set(pool.map(lambda name: fleet.submit(name=name, queue="stopped"), names))
    assert len(handles) == 50
    count = fleet.pbs.count("qstat")
    views = json.loads(fleet.lab.aegis("status", "--json").out)
    assert {view["job_id"] for view in views} == handles
    assert {view["model_status"] for view in views} == {"PENDING"}
    assert count() == 1


def test_three_submissions_in_the_same_second(fleet: Fleet) -> None:
    with ThreadPoolExecutor(3) as pool:
        handles = set(pool.map(lambda number: fleet.submit(name=f"{number}.yaml"), range(3)))
    assert len(handles) == 3
    for handle in handles:
        fleet.wait_for(handle, "READY")


def test_a_batch_and_the_end_of_one_component(fleet: Fleet) -> None:
    entry = {"model_family": "m", "model_type": "LLM", "vocab_size": 1000, "time": "00:10:00", "venv": ""}
    entry |= {"partition": "workq", "gpus_per_node": 4, "num_nodes": 1}
    entry |= {"vllm_args": {"--tensor-parallel-size": 4}}
    models = {name: {**entry, "hf_model": f"org/{name}"} for name in ("small-1B", "large-8B")}
    (fleet.work / "batch.yaml").write_text(yaml.safe_dump({"models": models}))
    words = ["--platform", fleet.site, "--engine", "sim", "--batch-config", "batch.yaml", "--wait"]
    done = fleet.lab.aegis("batch-launch", *models, *words, timeout=150)
    assert f"{fleet.pbs.home}/.aegis-logs/m/large-8B.1025.aurora-pbs-0001+1" in done.out + done.err
    found = re.search(r"pbs://[\w.-]+", done.err)
    assert found
    job = found[0]
    views = {view["job_id"]: view for view in json.loads(fleet.lab.aegis("status", "--json").out)}
    assert set(views) == {f"{job}+0", f"{job}+1"}
    assert {view["model_status"] for view in views.values()} == {"READY"}
    hosts = [views[f"{job}+{number}"]["base_url"].split(":")[1] for number in (0, 1)]
    assert hosts == [f"//{node}" for node in NODES[:2]]
    fleet.lab.aegis("shutdown", f"{job}+1", timeout=120)
    fleet.wait_for(f"{job}+1", "SHUTDOWN")
    kept = fleet.view(f"{job}+0")
    assert kept["model_status"] == "READY"
    assert (
        request(kept["base_url"].removeprefix("http://").removesuffix("/v1"), "GET", "/v1/models")[0] == 200
    )
    fleet.lab.aegis("shutdown", job, timeout=120)
    fleet.wait_for(f"{job}+0", "SHUTDOWN")


@pytest.mark.parametrize("hostile", ["1; touch X", "pbs://$(touch X)", "-1", "1025 1026"])
def test_hostile_ids(fleet: Fleet, hostile: str) -> None:
    for command in ("status", "shutdown"):
        done = fleet.lab.aegis(command, "--", hostile, code=4)
        assert done.err.startswith("error: ")
    assert not list(fleet.lab.path.rglob("X"))
