"""Gateways that a launch starts: one URL while servers and gateways die, and an end that cuts no request."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from .conftest import chat, request, wait_until

if TYPE_CHECKING:
    from .conftest import Job, Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
MODEL, FIRST = "rehearsal-1B", "rehearsal-1B-0"
SLOW = ["--grace", "12", "--itl-ms", "20"]
LONG = {"model": MODEL, "prompt": "x", "max_tokens": 150, "stream": True}  # three seconds


@pytest.fixture
def nodes(lab: Lab) -> str:
    """A platform of two nodes with two devices each."""
    profile = {"name": "pair", "extends": "local", "nodes": 2, "node": {"devices": 2}}
    (lab.work / "pair.yaml").write_text(yaml.safe_dump(profile))
    return "pair.yaml"


def ask(endpoint: str, body: dict[str, Any], key: str | None = None) -> tuple[int, str]:
    """Send a completion; return the status and the whole answer, however long it takes."""
    connection = http.client.HTTPConnection(endpoint, timeout=60)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def running(job: Job) -> float:
    """Return how many requests the servers work on."""
    pages = [request(endpoint, "GET", "/metrics")[1] for endpoint in job.endpoints]
    lines = [line for page in pages for line in page.splitlines()]
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))


def comes_back(job: Job, name: str, old: int) -> None:
    """Wait until another process of that name is healthy."""
    seen = job.service
    wait_until(lambda: seen(name)["metadata"].get("pid") not in {None, old}, f"{name} is started again")
    job.wait_for(name, "healthy")


def test_a_gateway_on_every_node(lab: Lab, nodes: str) -> None:
    job = lab.submit(
        platform=nodes,
        instances=2,
        tensor_parallel_size=2,
        gateways="per-node",
        extra_sim_args=SLOW,
    )
    gateways = job.manifest["gateways"]
    assert len({gateway.rpartition(":")[0] for gateway in gateways}) == 2
    assert len(job.endpoints) == 2
    assert not set(gateways) & set(job.endpoints)
    assert job.manifest["server_address"] == f"http://{gateways[0]}/v1"
    for gateway in gateways:
        assert f"gateway http://{gateway}/v1" in job.log
        assert chat(gateway, MODEL)["choices"]

    said = job.status()
    assert said["base_url"] == f"http://{gateways[0]}/v1"
    assert (said["healthy"], said["instances"], len(said["services"])) == (2, 2, 2)
    assert [each["service_id"] for each in said["gateways"]] == ["gateway-0", "gateway-1"]
    assert "gateway-1" in lab.aegis("status", job.handle).out

    # a gateway is killed: the other one serves, and it comes back where it was
    old = job.engine("gateway-0")
    old.kill()
    assert chat(gateways[1], MODEL)["choices"]
    comes_back(job, "gateway-0", old.pid)
    assert chat(gateways[0], MODEL)["choices"]
    wait_until(lambda: job.manifest["gateways"] == gateways, "the manifest has both again")
    wait_until(lambda: f"gateway http://{gateways[0]}/v1 again" in job.log)

    # a server is killed: nobody who asks a gateway hears of it
    old = job.engine(FIRST)
    old.kill()
    for number in range(20):
        assert chat(gateways[number % 2], MODEL)["choices"]
    comes_back(job, FIRST, old.pid)
    assert chat(gateways[0], MODEL)["choices"]

    # the end: what runs is finished, and nothing is left
    answers: list[tuple[int, str]] = []
    asking = [threading.Thread(target=lambda each=each: answers.append(ask(each, LONG))) for each in gateways]
    for thread in asking:
        thread.start()
    wait_until(lambda: running(job) == 2, "both requests run")
    job.head.kill(signal.SIGTERM)
    for thread in asking:
        thread.join()
    assert [code for code, _ in answers] == [200, 200]
    assert all(text.rstrip().endswith("data: [DONE]") for _, text in answers)
    wait_until(lab.is_empty, "nothing is left")
    assert (job.manifest["state"], job.manifest["gateways"]) == ("SHUTDOWN", [])


def test_a_gateway_that_cannot_start_ends_no_launch(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = lab.aegis(
            "submit", "--config", lab.deployment(), "--wait", "--gateway", "--gateway-port", port
        )
        job = lab.job(answer.err.partition("submitted ")[2].split()[0])
        assert answer.out.split() == job.endpoints
        assert f"gateway-0 failed: port is taken: {port}" in answer.err
        assert (job.manifest["state"], job.manifest["gateways"]) == ("READY", [])
        assert job.status()["base_url"] == f"http://{job.endpoints[0]}/v1"
        assert "port is taken" in lab.aegis("status", job.handle).out


def test_keys_are_asked_for_and_the_servers_own_is_shown_to_nobody(lab: Lab) -> None:
    name = "the keys; $(touch X) 'of' \"us\""
    key = lab.aegis("gateway", "keys", "add", "alice", "--file", name).out.strip()
    lab.environ["VLLM_API_KEY"] = "the-servers-own-key"
    job = lab.submit("--gateways", "1", "--gateway-keys", name)
    (gateway,) = job.manifest["gateways"]
    body = {"model": MODEL, "prompt": "x", "max_tokens": 2}
    assert ask(gateway, body)[0] == 401
    assert ask(gateway, body, "the-servers-own-key")[0] == 401
    assert ask(gateway, body, key)[0] == 200
    assert ask(job.endpoints[0], body, key)[0] == 401
    assert not [each for each in lab.processes() if "the-servers-own-key" in each.command]
    assert not (lab.work / "X").exists()


def test_without_keys_a_client_has_to_know_the_servers_own(lab: Lab) -> None:
    lab.environ["VLLM_API_KEY"] = "the-servers-own-key"
    job = lab.submit("--gateway")
    (gateway,) = job.manifest["gateways"]
    body = {"model": MODEL, "prompt": "x", "max_tokens": 2}
    assert ask(gateway, body)[0] == 401
    assert ask(gateway, body, "the-servers-own-key")[0] == 200
