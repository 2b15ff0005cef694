from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aegis.errors import PlacementError
from aegis.fleet import agent
from aegis.fleet.agent.engine import INTERNAL_PORT_MARK, PORT_MARK
from aegis.fleet.agent.node import Agent
from aegis.fleet.agent.vitals import Policy
from aegis.fleet.nodes import Host, local_hosts
from aegis.fleet.order import (
    LINKED_PUSH_SECONDS,
    NO_PROXY_NODES,
    Fleet,
    NodeOrder,
    Weights,
    fleet_file,
    node_orders,
    port_block,
    push_seconds,
    service_names,
)
from aegis.placement import PORT_STRIDE, place
from aegis.runs import RunDir
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.platform import Network, Node, Platform

if TYPE_CHECKING:
    from collections.abc import Sequence

HOSTILE = ["a b", "'", '"', "a\nb", "$(touch X)", "`touch X`", ";touch X", "-x", "ä", "../..", "*", "a/b", ""]
NODE = Node(
    devices=4,
    mask_variable="MASK",
    device_cpus=("0-1", "2-3", "4-5", "6-7"),
    local_path="/local/$USER",
)
models = st.lists(
    st.builds(
        ModelEntry,
        model=st.sampled_from(["m", "org/m", "other", "a b"]),
        engine=st.sampled_from(["vllm", "sglang", "sim"]),
        instances=st.integers(1, 5),
        tensor_parallel_size=st.sampled_from([1, 2, 4, 8]),
        data_parallel_size=st.sampled_from([1, 2]),
    ),
    min_size=1,
    max_size=4,
)


def fleet(
    *entries: ModelEntry,
    node: Node = NODE,
    hosts: Sequence[Host] = (),
    platform: dict[str, Any] | None = None,
    **keys: Any,
) -> Fleet:
    placement = place(entries, node, port_start=keys.get("port_start") or 8000, reserved_ports={8471})
    return Fleet(
        deployment=Deployment(models=entries, **keys),
        platform=Platform(name="p", node=node, **(platform or {})),
        placement=placement,
        hosts=tuple(hosts or local_hosts(placement.nodes)),
        weights=tuple(Weights(entry.model, local=False) for entry in entries),
        job="local://abc",
        run=RunDir(Path("/runs/m.abc"), "m.abc"),
        registry_url="http://127.0.0.1:8471",
        python="/usr/bin/python3",
        work_dir="/somewhere",
    )


def orders_of(node: NodeOrder) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(msgspec.json.encode(node))["instances"]
    return found


@given(models)
@settings(deadline=None, max_examples=150)
def test_nothing_on_a_node_is_given_twice(entries: list[ModelEntry]) -> None:
    try:
        made = fleet(*entries)
    except PlacementError:
        assume(False)
    nodes = node_orders(made)
    ids = [order.id for node in nodes for order in node.instances]
    assert len(set(ids)) == len(ids)
    assert [node.node for node in nodes] == [host.name for host in made.hosts]
    assert sum(entry.instances for entry in entries) == sum(
        order.rank == 0 for node in nodes for order in node.instances
    )
    for node in nodes:
        ports: list[int] = []
        masks: list[str] = []
        cpus: list[int] = []
        for order in node.instances:
            ports += [order.port, *range(order.internal_port, order.internal_port + PORT_STRIDE)]
            masks += order.env["MASK"].split(",")
            cpus += order.cpus
            assert re.fullmatch(r"[A-Za-z0-9._-]+", order.id)
            assert order.log == f"/runs/m.abc/instances/{order.id}.log"
        for given_out in (ports, masks, cpus):
            assert len(set(given_out)) == len(given_out)
        assert 8471 not in ports
        linked = any(order.metadata["members"] > 1 for order in node.instances)
        usual = push_seconds(len(made.hosts))
        assert node.push_interval == (min(usual, LINKED_PUSH_SECONDS) if linked else usual)
        block = port_block(made.placement)
        assert all(order.port_block == block for order in node.instances)
        moved = {port + block for port in ports}
        assert not moved & set(ports)  # a second launch with the same defaults fits beside it


@given(models)
@settings(deadline=None, max_examples=30)
def test_an_agent_finds_and_understands_its_line(entries: list[ModelEntry]) -> None:
    try:
        made = fleet(*entries)
    except PlacementError:
        assume(False)
    lines = fleet_file(node_orders(made)).splitlines()
    assert len(lines) == made.placement.nodes
    for host, line in zip(made.hosts, lines, strict=True):
        assert line.startswith(f'{{"node":"{host.name}"')  # as `read_order` looks for it
        for instance in Agent(json.loads(line), {}).instances:
            report = instance.report()
            assert report["status"] == "pending"
            assert report["port"] == (0 if instance.order["rank"] else instance.order["port"])
            for pattern, _, permanent in instance.order["causes"]:
                re.compile(pattern)
                assert isinstance(permanent, bool)
            for wake in (instance._wake,):
                os.close(wake.reader)
                os.close(wake._writer)


KEYS_READ = re.compile(r"\border(?:\[|\.get\()\"(\w+)\"")


def test_the_agent_reads_only_keys_that_are_written() -> None:
    written = set(orders_of(node_orders(fleet(ModelEntry(model="m")))[0])[0])
    node_keys = {field.name for field in msgspec.structs.fields(NodeOrder)}
    read = {
        key
        for file in Path(agent.__file__).parent.glob("*.py")
        for key in KEYS_READ.findall(file.read_text())
    }
    assert {"argv", "env", "cpus", "policy", "causes"} <= read
    assert read <= written | node_keys


def test_policy_values_are_ones_the_agent_knows() -> None:
    policy = orders_of(node_orders(fleet(ModelEntry(model="m"), startup_timeout=77, max_restarts=9))[0])[0][
        "policy"
    ]
    assert set(policy) <= set(vars(Policy()))
    assert Policy(**policy).startup_timeout == 77
    assert Policy(**policy).max_restarts == 9


def test_the_marks_are_the_same_on_both_sides() -> None:
    from aegis.engines import base  # noqa: PLC0415 - only here

    assert (base.PORT, base.INTERNAL_PORT) == (PORT_MARK, INTERNAL_PORT_MARK)


@given(st.lists(st.text(min_size=1) | st.sampled_from(["m", "a/m", "m-2"]), min_size=1))
def test_service_names_are_unique_and_safe(names: list[str]) -> None:
    found = service_names([ModelEntry(model=name) for name in names])
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in found)


def test_service_names_of_instances_do_not_meet() -> None:
    entries = [ModelEntry(model=name, instances=2) for name in ("m", "a/m", "m-2", "m")]
    ids = [order.id for node in node_orders(fleet(*entries)) for order in node.instances]
    assert len(set(ids)) == 8


def test_ports_are_pinned_only_when_the_user_named_one() -> None:
    assert not node_orders(fleet(ModelEntry(model="m")))[0].instances[0].port_pinned
    pinned = node_orders(fleet(ModelEntry(model="m"), port_start=9000))[0].instances[0]
    assert pinned.port_pinned
    assert pinned.port == 9000


def test_an_instance_of_several_nodes_stays_at_its_ports() -> None:
    # All members know where to find the head from their commands: it cannot move without them.
    nodes = node_orders(fleet(ModelEntry(model="m", tensor_parallel_size=8)))
    assert [order.port_pinned for node in nodes for order in node.instances] == [True, True]


def test_the_environment_in_order_of_authority() -> None:
    entry = ModelEntry(
        model="m", tensor_parallel_size=2, env={"A": "user", "MASK": "0,1,2,3", "H": "$(x)\n'\""}
    )
    platform = {"env": {"A": "site", "B": "site"}, "unset": ("GONE",)}
    order = node_orders(fleet(entry, platform=platform, venv="/v e/nv", hf_home="/hf", skip_staging=True))[
        0
    ].instances[0]
    env = order.env
    assert (env["A"], env["B"], env["H"]) == ("user", "site", "$(x)\n'\"")
    assert env["MASK"] == "0,1"  # devices are ours to give
    assert env["PATH"] == "/v e/nv/bin:/usr/bin:/bin"
    assert env["VIRTUAL_ENV"] == "/v e/nv"
    assert order.argv[0] == "/v e/nv/bin/vllm"
    assert (env["HF_HOME"], env["HF_HUB_OFFLINE"], env["TRANSFORMERS_OFFLINE"]) == ("/hf", "1", "1")
    assert order.unset[0] == "GONE"
    assert "AEGIS_JOB" in order.unset
    assert "HF_HUB_OFFLINE" not in node_orders(fleet(ModelEntry(model="org/m")))[0].instances[0].env


def test_an_unknown_user_in_a_path_is_no_traceback() -> None:
    made = fleet(ModelEntry(model="m"), venv="~nobody-of-that-name/v", hf_home="~nobody-of-that-name/h")
    assert node_orders(made)[0].instances[0].argv[0] == "~nobody-of-that-name/v/bin/vllm"


def test_the_nodes_of_the_job_are_never_reached_by_proxy() -> None:
    network = Network(http_proxy="http://p:1", host_suffix=".hsn", no_proxy=("site",))
    hosts = [Host(f"n{at}.long", f"n{at}.hsn", "0.0.0.0") for at in range(2)]
    entry = ModelEntry(model="m", tensor_parallel_size=8)
    env = node_orders(fleet(entry, hosts=hosts, platform={"network": network}))[0].instances[0].env
    assert env["https_proxy"] == env["HTTP_PROXY"] == "http://p:1"
    direct = env["no_proxy"].split(",")
    assert env["NO_PROXY"] == env["no_proxy"]
    for name in ("localhost", "127.0.0.1", "site", ".hsn", "n0.long", "n0", "n0.hsn", "n1.hsn"):
        assert direct.count(name) == 1


def test_a_thousand_nodes_fit_in_one_variable() -> None:
    count = NO_PROXY_NODES + 1
    hosts = [Host(f"n{at}" + "x" * 40, f"n{at}.hsn", "0.0.0.0") for at in range(count)]
    entry = ModelEntry(model="m", tensor_parallel_size=4, instances=count)
    env = node_orders(fleet(entry, hosts=hosts))[0].instances[0].env
    assert len(env["no_proxy"]) < 1000


def test_members_know_their_instance_and_rank_zero_serves() -> None:
    nodes = node_orders(fleet(ModelEntry(model="m", tensor_parallel_size=8)))
    head, member = nodes[0].instances[0], nodes[1].instances[0]
    assert (head.id, head.service_type) == ("m-0", "vllm")
    assert (member.id, member.service_type) == ("m-0.rank1", "vllm-member")
    assert head.metadata["instance"] == member.metadata["instance"] == "m-0"
    assert (member.metadata["rank"], member.metadata["members"]) == (1, 2)


# ------------------------------------------------------------------------------------------- containers


def contained(entry: ModelEntry, *weights: Weights, **keys: Any) -> dict[str, Any]:
    made = fleet(entry, platform={"env": {"A": "site", "TMPDIR": "/scratch"}}, image="vllm.sif", **keys)
    if weights:
        made = msgspec.structs.replace(made, weights=weights)
    return orders_of(node_orders(made)[0])[0]


def test_in_a_container_only_what_the_engine_is_to_see_is_passed_and_devices_are_passed_late() -> None:
    order = contained(ModelEntry(model="m", env={"B": 'a,b\n"$(x)'}))
    env = order["env"]
    assert (env["APPTAINERENV_A"], env["APPTAINERENV_B"]) == ("site", 'a,b\n"$(x)')
    assert env["APPTAINERENV_VLLM_PORT"] == INTERNAL_PORT_MARK  # filled in by the agent
    assert "A" not in env
    # the agent alone knows which devices were granted: it changes MASK, and the shell passes that on
    assert env["MASK"] == "0"
    assert "APPTAINERENV_MASK" not in env
    words = order["argv"]
    assert words[:2] == ["bash", "-lc"]
    assert "for name in AEGIS_START MASK HF_TOKEN VLLM_API_KEY RAY_AUTH_TOKEN; do" in words[2]
    assert words[4:7] == ["apptainer", "exec", "--cleanenv"]
    image = words.index("/somewhere/vllm.sif")
    assert words[image - 2 : image] == ["--pwd", "/somewhere"]
    assert words[image + 1 : image + 3] == ["vllm", "serve"]


@pytest.mark.parametrize(
    ("path", "folder"),
    [("/w/model", "/w/model"), ("/hub/models--org--m/snapshots/abc", "/hub/models--org--m")],
)
def test_a_container_sees_the_weights_and_the_files_that_they_link_to(path: str, folder: str) -> None:
    words = contained(ModelEntry(model="m"), Weights(path, local=True), hf_home="/hf")["argv"]
    mounted = [words[at + 1] for at, word in enumerate(words) if word == "--mount"]
    folders = ["/somewhere", "/hf", "/tmp", "/scratch", folder]
    assert mounted == [f"type=bind,source={each},destination={each}" for each in folders]
    assert path in words


def test_sglang_runs_on_the_images_python_and_the_simulated_engine_on_ours() -> None:
    words = contained(ModelEntry(model="m", engine="sglang"))["argv"]
    assert words[words.index("/somewhere/vllm.sif") + 1 :][:3] == ["python3", "-m", "sglang.launch_server"]
    order = contained(ModelEntry(model="m", engine="sim"))
    assert order["argv"][0] == "/usr/bin/python3"
    assert not [name for name in order["env"] if name.startswith("APPTAINER")]


def test_ray_runs_inside_of_the_container() -> None:
    entry = ModelEntry(model="m", tensor_parallel_size=8, distributed_executor="ray")
    for node in node_orders(fleet(entry, image="/i.sif")):
        words = orders_of(node)[0]["argv"]
        assert words[words.index("/i.sif") + 1 :][:2] == ["bash", "-c"]
