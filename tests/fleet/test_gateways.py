from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.engines.base import PORT
from aegis.errors import DeploymentError
from aegis.fleet.agent.node import Agent
from aegis.fleet.agent.ports import MAX_PORT_SHIFTS, Ports
from aegis.fleet.agent.probing import Prober
from aegis.fleet.agent.vitals import Policy, Vitals
from aegis.fleet.gateways import default_port, gateway_count, gateway_ids, with_gateways
from aegis.fleet.nodes import local_hosts
from aegis.fleet.order import Fleet, Weights, node_orders, port_block
from aegis.fleet.prepare import place_on
from aegis.fleet.progress import Progress, members_of
from aegis.placement import PORT_STRIDE
from aegis.registry.model import Service
from aegis.runs import RunDir
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.platform import Node, Platform
from aegis.spec.resolve import Resolved

if TYPE_CHECKING:
    from aegis.registry.model import Status

HOSTILE = ["a b", "a\nb", "$(touch X)", "`touch X`", ";touch X", "'", '"', "-x", "--keys", "ä", "*"]


def fleet(*, instances: int = 4, model: str = "m", **keys: Any) -> Fleet:
    """Return a launch of servers with two devices each, on nodes with four."""
    deployment = Deployment(
        models=(ModelEntry(model=model, instances=instances, tensor_parallel_size=2),), **keys
    )
    platform = Platform(name="p", node=Node(devices=4, mask_variable="MASK"), unset=("GONE",))
    placed, placement = place_on(platform, deployment, None)
    return Fleet(
        deployment=deployment,
        platform=placed,
        placement=placement,
        hosts=tuple(local_hosts(placement.nodes)),
        weights=(Weights(model, local=False),),
        job="local://abc",
        run=RunDir(Path("/runs/m.abc"), "m.abc"),
        registry_url="http://127.0.0.1:8471",
        python="/usr/bin/python3",
        work_dir="/somewhere",
    )


def orders(made: Fleet, count: int) -> list[list[dict[str, Any]]]:
    """Return the orders of the gateways of each node, as agents read them."""
    nodes = json.loads(msgspec.json.encode(with_gateways(made, node_orders(made), count)))
    return [[each for each in node["instances"] if each["service_type"] == "gateway"] for node in nodes]


def resolved(**keys: Any) -> Resolved:
    deployment = Deployment(models=(ModelEntry(model="m"),), **keys)
    return Resolved(deployment, Platform(name="p"), None, {"gateways": "d.yaml:7"}, ())


# ------------------------------------------------------------------------------------------- orders


def test_an_order_is_all_that_an_agent_needs() -> None:
    (found,), (none,) = orders(fleet(), 1)[0], [orders(fleet(), 1)[1]]
    assert none == []
    command = ["env", "-u", "HF_TOKEN", "-u", "VLLM_API_KEY", "-u", "RAY_AUTH_TOKEN"]
    command += ["/usr/bin/python3", "-P", "-m", "aegis", "gateway", "--registry-url", "http://127.0.0.1:8471"]
    expected = {
        "id": "gateway-0",
        "service_type": "gateway",
        "rank": 0,
        "argv": [*command, "--host", "127.0.0.1", "--port", PORT],
        "env": {},
        "unset": ["AEGIS_JOB", "AEGIS_RUN_DIR"],
        "mask": "",
        "cwd": "/somewhere",
        "cpus": [],
        "address": "127.0.0.1",
        "bind": "127.0.0.1",
        "port": 8080,
        "internal_port": 8080,
        "port_pinned": False,
        "port_block": 2000,
        "log": "/runs/m.abc/instances/gateway-0.log",
        "health": {"path": "/healthz", "canary_path": "", "canary": {}},
        "metrics": {},
        "policy": {"startup_timeout": 120.0, "stop_grace": 18.0, "max_restarts": 3},
        "needs": [],
        "metadata": {"job": "local://abc", "node": "local-0", "position": 0},
    }
    assert {name: found[name] for name in expected} == expected


def test_every_node_or_the_first_ones_get_one() -> None:
    assert [len(each) for each in orders(fleet(instances=6), 0)] == [0, 0, 0]
    assert [len(each) for each in orders(fleet(instances=6), 2)] == [1, 1, 0]
    everywhere = orders(fleet(instances=6), 3)
    assert [each["id"] for (each,) in everywhere] == ["gateway-0", "gateway-1", "gateway-2"]
    assert [each["bind"] for (each,) in everywhere] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]


def test_it_runs_on_the_python_of_the_launch_whatever_the_engine_runs_on() -> None:
    plain = orders(fleet(), 1)
    for keys in ({"venv": "/v"}, {"image": "/i.sif"}, {"modules": ("m",)}, {"conda_env": "/c.tar.gz"}):
        assert orders(fleet(**keys), 1) == plain


def test_servers_are_told_the_same_with_and_without_gateways() -> None:
    made = fleet()
    plain = node_orders(made)
    found = with_gateways(made, node_orders(made), 2)
    for node, other in zip(found, plain, strict=True):
        assert node.instances[:-1] == other.instances


@pytest.mark.parametrize("name", HOSTILE)
def test_a_path_of_keys_is_one_argument_from_the_directory_of_the_job_on(name: str) -> None:
    (found,) = orders(fleet(gateways=1, gateway_keys=name), 1)[0]
    assert found["argv"][-2:] == ["--keys", f"/somewhere/{name}"]


def test_the_key_of_the_servers_is_for_gateways_that_ask_for_keys_themselves() -> None:
    words = {keys: orders(fleet(gateways=1, gateway_keys=keys), 1)[0][0]["argv"] for keys in (None, "k")}
    assert "VLLM_API_KEY" in words[None]  # taken away
    assert "VLLM_API_KEY" not in words["k"]
    assert "HF_TOKEN" in words["k"]


def test_a_home_in_the_path_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (found,) = orders(fleet(gateways=1, gateway_keys="~/keys"), 1)[0]
    assert found["argv"][-1] == "/home/me/keys"
    (found,) = orders(fleet(gateways=1, gateway_keys="/etc/keys"), 1)[0]
    assert found["argv"][-1] == "/etc/keys"


def test_an_agent_understands_the_order() -> None:
    made = fleet()
    node = json.loads(msgspec.json.encode(with_gateways(made, node_orders(made), 1)[0]))
    instance = Agent(node, {}).instances[-1]
    report = instance.report()
    assert (report["service_id"], report["service_type"], report["port"]) == ("gateway-0", "gateway", 8080)
    assert (
        instance.policy.stop_grace > Policy().stop_grace
    )  # it passes on what servers finish in their last seconds


def test_a_model_of_that_name_is_no_gateway() -> None:
    made = fleet(model="gateway")
    found = with_gateways(made, node_orders(made), 2)
    ids = [each.id for node in found for each in node.instances]
    assert len(set(ids)) == len(ids)
    assert gateway_ids(found) == ["gateway-0", "gateway-1"]


def test_a_gateway_is_healthy_when_it_says_so_and_is_asked_for_no_token() -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815 - as it is called

        def log_message(self, *_args: object) -> None:
            pass

    (order,) = orders(fleet(), 1)[0]
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            order["port"] = server.server_port
            prober = Prober(order, Policy(), Ports(order), "")
            vitals = Vitals(Policy(), 0.0)
            assert [vitals.observe(at, prober.look(vitals, at)) for at in (1.0, 500.0)] == ["healthy"] * 2
        finally:
            server.shutdown()
            thread.join()
    assert asked == ["GET /healthz"] * 2


# ------------------------------------------------------------------------------------------- ports


@given(st.integers(1024, 60000), st.integers(1, 12))
def test_a_gateway_never_meets_a_server_however_far_both_have_moved(start: int, instances: int) -> None:
    platform = Platform(name="p", node=Node(devices=12))
    deployment = Deployment(models=(ModelEntry(model="m", instances=instances),), port_start=start)
    placement = place_on(platform, deployment, None)[1]
    block, port = port_block(placement), default_port(placement)
    shifts = [at * block for at in range(MAX_PORT_SHIFTS)]
    assert port >= 8080
    own = {port + shift for shift in shifts}
    for instance in placement.instances:
        for member in instance.members:
            inside = range(member.internal_port, member.internal_port + PORT_STRIDE)
            assert not own & {number + shift for number in (member.port, *inside) for shift in shifts}


def test_a_port_that_was_named_is_kept_and_no_servers() -> None:
    made = fleet(instances=2, gateways=1, gateway_port=8001)
    assert [each.members[0].port for each in made.placement.instances] == [8000, 8002]
    (found,) = orders(made, 1)[0]
    assert (found["port"], found["port_pinned"]) == (8001, True)


# ------------------------------------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("wanted", "nodes", "found"),
    [(None, 3, 0), (0, 3, 0), (1, 3, 1), (3, 3, 3), ("per-node", 3, 3), ("per-node", 1, 1)],
)
def test_how_many(wanted: Any, nodes: int, found: int) -> None:
    assert gateway_count(resolved(gateways=wanted), nodes) == found


@pytest.mark.parametrize("wanted", [2, 10**30])
def test_more_than_nodes_are_refused_where_they_were_asked_for(wanted: int) -> None:
    with pytest.raises(DeploymentError) as caught:
        gateway_count(resolved(gateways=wanted), 1)
    assert caught.value.problems[0].where == "d.yaml:7"
    assert f"{wanted} gateways on 1 node" in caught.value.problems[0].message


# ------------------------------------------------------------------------------------------- progress


def service(name: str, kind: str, status: Status, **metadata: Any) -> Service:
    return Service(
        service_id=name,
        host="h",
        port=8080 if kind == "gateway" else 8000,
        service_type=kind,
        status=status,
        last_seen=0.0,
        metadata={"node": "n", **metadata},
    )


def gateway(status: Status, **metadata: Any) -> Service:
    return service("gateway-0", "gateway", status, **metadata)


def following() -> Progress:
    made = fleet(instances=1)
    found = with_gateways(made, node_orders(made), 1)
    return Progress(members_of(found), gateway_ids(found))


def told(progress: Progress, *services: Service) -> list[str]:
    return progress.apply(services, [], reset=False)


def test_the_life_of_a_gateway_in_lines() -> None:
    progress = following()
    lines = [
        told(progress, gateway("pending")),
        told(progress, gateway("starting", reason="starting")),
        told(progress, gateway("healthy", restarts=0, ready_after=1.0)),
        told(progress, gateway("unhealthy", reason="killed by SIGKILL; next start in 1 s")),
        told(progress, gateway("starting", reason="restarted", restarts=1)),
        told(progress, gateway("healthy", restarts=1, ready_after=1.0)),
        told(progress, gateway("failed", reason="port is taken: 8080")),
    ]
    assert lines == [
        [],
        [],
        ["gateway http://h:8080/v1"],
        ["gateway-0 unhealthy: killed by SIGKILL; next start in 1 s"],
        [],
        ["gateway http://h:8080/v1 again"],
        ["gateway-0 failed: port is taken: 8080"],
    ]


def test_a_gateway_counts_as_no_server() -> None:
    progress = following()
    told(progress, gateway("healthy"))
    assert (progress.counts.wanted, progress.counts.healthy) == (1, 0)
    told(progress, gateway("failed", reason="broken"))
    assert (progress.counts.failed, progress.failed, list(progress.heads)) == (0, [], [])
    assert not progress.counts.settled


def test_ready_waits_for_gateways_that_may_still_come_and_for_no_others() -> None:
    progress = following()
    assert not progress.gateways_settled
    for status, metadata, settled in (
        ("pending", {}, False),
        ("starting", {"restarts": 0}, False),
        ("healthy", {}, True),
        ("starting", {"restarts": 1}, True),
        ("failed", {}, True),
    ):
        told(progress, gateway(status, **metadata))  # type: ignore[arg-type]
        assert progress.gateways_settled is settled
    assert Progress(()).gateways_settled


def test_the_gateway_of_somebody_else_is_none_of_ours() -> None:
    progress = following()
    told(progress, service("gateway-of-a-user", "gateway", "healthy"))
    assert progress.gateways == []
