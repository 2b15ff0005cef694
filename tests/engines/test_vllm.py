"""Golden command lines and environments of vLLM, and the real argument parser on all of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from aegis.engines import engine
from aegis.engines.base import INTERNAL_PORT, MASTER_PORT_OFFSET, PORT, Start, merge_args
from aegis.engines.vllm import NIXL_OFFSET
from aegis.fleet.nodes import Host
from aegis.fleet.order import Fleet, Weights, node_orders
from aegis.placement import PORT_STRIDE, place
from aegis.runs import RunDir
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.machine import CPU_KIND
from aegis.spec.platform import Node, Platform
from aegis.spec.platforms import Site, load_platform

if TYPE_CHECKING:
    from collections.abc import Mapping

GPUS = Platform(name="gpus", node=Node(devices=4))
BASE = ["--served-model-name", "org/m", "--host", "0.0.0.0", "--port", PORT]
MASTER = str(9000 + MASTER_PORT_OFFSET)  # in the internal ports of rank 0


def starts(entry: ModelEntry, platform: Platform = GPUS) -> list[Start]:
    """What the engine is told for each member of the first instance."""
    instance = place([entry], platform.node, port_start=8000).instances[0]
    return [
        Start(
            entry=entry,
            instance=instance,
            member=member,
            platform=platform,
            weights=entry.model,
            weights_are_local=False,
            address=f"n{member.node}",
            bind="0.0.0.0",
            master="n0",
            executable="vllm",
            python="python3",
        )
        for member in instance.members
    ]


def commands(entry: ModelEntry, platform: Platform = GPUS) -> list[list[str]]:
    return [list(engine(entry.engine).command(start)) for start in starts(entry, platform)]


def model(tp: int = 1, pp: int = 1, dp: int = 1, **keys: Any) -> ModelEntry:
    return ModelEntry(
        model="org/m", tensor_parallel_size=tp, pipeline_parallel_size=pp, data_parallel_size=dp, **keys
    )


def test_one_node() -> None:
    head = ["vllm", "serve", "org/m", *BASE]
    assert commands(model(2)) == [[*head, "--tensor-parallel-size", "2"]]
    assert commands(model(1, 2, 2)) == [
        [
            *(*head, "--tensor-parallel-size", "1"),
            *("--pipeline-parallel-size", "2", "--data-parallel-size", "2"),
        ]
    ]


def test_tensor_parallel_over_two_nodes() -> None:
    common = ["vllm", "serve", "org/m", *BASE, "--tensor-parallel-size", "8", "--nnodes", "2"]
    meeting = ["--master-addr", "n0", "--master-port", MASTER, "--distributed-executor-backend", "mp"]
    assert commands(model(8)) == [
        [*common, "--node-rank", "0", *meeting],
        [*common, "--node-rank", "1", *meeting, "--headless"],
    ]


def test_whole_replicas_on_each_of_two_nodes() -> None:
    common = ["vllm", "serve", "org/m", *BASE, "--tensor-parallel-size", "2", "--data-parallel-size", "4"]
    meeting = [
        "--data-parallel-size-local",
        "2",
        "--data-parallel-address",
        "n0",
        "--data-parallel-rpc-port",
        MASTER,
    ]
    assert commands(model(2, dp=4)) == [
        [*common, *meeting],
        [*common, *meeting, "--data-parallel-start-rank", "2", "--headless"],
    ]


def test_each_replica_over_two_nodes() -> None:
    made = commands(model(8, dp=2))
    assert len(made) == 4
    for rank, command in enumerate(made):
        text = " ".join(command)
        assert f"--nnodes 4 --node-rank {rank} --master-addr n0 --master-port {MASTER}" in text
        assert (
            f"--data-parallel-size-local 1 --data-parallel-address n0 --data-parallel-rpc-port {int(MASTER) + 1}"
            in text
        )
        assert ("--headless" in command) == (rank > 0)


def test_the_ports_of_the_meeting_are_the_members_own() -> None:
    assert MASTER_PORT_OFFSET + 1 < PORT_STRIDE


def test_environment() -> None:
    quiet = {"VLLM_PORT": INTERNAL_PORT, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    assert engine("vllm").environment(starts(model(2))[0]) == quiet
    assert [engine("vllm").environment(start) for start in starts(model(8))] == [
        {**quiet, "VLLM_HOST_IP": "n0"},
        {**quiet, "VLLM_HOST_IP": "n1"},
    ]


def test_servers_that_hand_on_their_cache_have_a_port_of_their_own_for_it() -> None:
    entry = model(1, extra_vllm_args=("--kv-transfer-config", "{}"), instances=2)
    instances = place([entry], GPUS.node, port_start=8000).instances
    (start,) = starts(entry)
    both = [
        engine("vllm").environment(msgspec.structs.replace(start, instance=each, member=each.members[0]))
        for each in instances
    ]
    ports = {each["VLLM_NIXL_SIDE_CHANNEL_PORT"] for each in both}
    assert ports == {str(each.members[0].internal_port + NIXL_OFFSET) for each in instances}
    assert {each["VLLM_NIXL_SIDE_CHANNEL_HOST"] for each in both} == {"n0"}
    assert NIXL_OFFSET < MASTER_PORT_OFFSET


def test_cores_are_bound_per_rank_where_there_is_no_accelerator() -> None:
    node = Node(devices=4, device_kind=CPU_KIND, mask_variable=None, device_cpus=("0,1", "2,3", "4,5", "6,7"))
    platform = Platform(name="cpu", node=node)
    bound = "VLLM_CPU_OMP_THREADS_BIND"

    def of(entry: ModelEntry) -> list[str | None]:
        return [engine("vllm").environment(start).get(bound) for start in starts(entry, platform)]

    assert of(model(1)) == ["0,1"]
    assert of(model(2)) == ["0,1|2,3"]
    assert of(model(2, dp=2)) == ["0,1|2,3|4,5|6,7"]
    assert of(model(8)) == ["0,1|2,3|4,5|6,7"] * 2
    unknown = msgspec.structs.replace(
        platform, node=msgspec.structs.replace(node, device_cpus=("", "", "", ""))
    )
    assert bound not in engine("vllm").environment(starts(model(2), unknown)[0])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((), ("--dtype", "bfloat16", "--enforce-eager", "--backend", "mp")),
        (("--dtype", "float32"), ("--enforce-eager", "--backend", "mp")),
        (("--dtype=float32",), ("--enforce-eager", "--backend", "mp")),
        (("--no-enforce-eager",), ("--dtype", "bfloat16", "--backend", "mp")),
        (("--enforce_eager", "--backend", "ray"), ("--dtype", "bfloat16")),
        (("--x", "--dtype-of-x"), ("--dtype", "bfloat16", "--enforce-eager", "--backend", "mp")),
        (("value", "dtype"), ("--dtype", "bfloat16", "--enforce-eager", "--backend", "mp")),
    ],
)
def test_the_sites_arguments_give_way_to_the_users(given: tuple[str, ...], kept: tuple[str, ...]) -> None:
    defaults = ("--dtype", "bfloat16", "--enforce-eager", "--backend", "mp")
    assert merge_args(defaults, given) == (*kept, *given)


def test_arguments_reach_the_command_as_they_are() -> None:
    site = Platform(
        name="s", node=Node(devices=4), engine_args={"vllm": ("--dtype", "auto"), "sglang": ("--no",)}
    )
    given = ("--max-model-len", "10", "--override", '{"a": [1, 2], "b": "$(x)"}')
    [command] = commands(model(extra_vllm_args=given, extra_sglang_args=("--other",)), site)
    assert command[-6:] == ["--dtype", "auto", *given]


def test_names_are_single_arguments() -> None:
    entry = ModelEntry(model="a b'\"\n$(x);", served_model_name="-n $(y)")
    [command] = commands(entry)
    assert command[2] == entry.model
    assert "--served-model-name=-n $(y)" in command  # in one word: it would be taken for a flag
    assert engine("vllm").health(entry).canary["model"] == "-n $(y)"


@pytest.mark.parametrize(
    ("platform", "variable", "unset"),
    [
        ("aurora", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"),
        ("frontier", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        ("polaris", "CUDA_VISIBLE_DEVICES", None),
        ("perlmutter", "CUDA_VISIBLE_DEVICES", None),
    ],
)
def test_device_masks_of_the_platforms(platform: str, variable: str, unset: str | None) -> None:
    site = load_platform(platform, Site.here({"AEGIS_PLATFORM_DIR": "/no/such", "HOME": "/no/such"}))
    assert site.node.devices
    entry = model(2, instances=site.node.devices // 2)
    placement = place([entry], site.node, port_start=8000)
    made = Fleet(
        deployment=Deployment(models=(entry,)),
        platform=site,
        placement=placement,
        hosts=(Host("n0", "n0", "0.0.0.0"),),
        weights=(Weights("org/m", local=False),),
        job="local://x",
        run=RunDir(Path("/runs/m.x"), "m.x"),
        registry_url="http://127.0.0.1:8471",
        python="python3",
        work_dir="/",
    )
    [node] = node_orders(made)
    masks = [order.env[variable] for order in node.instances]
    devices = [int(device) for mask in masks for device in mask.split(",")]
    assert sorted(devices) == list(range(site.node.devices))
    assert all(len(mask.split(",")) == 2 for mask in masks)
    for order in node.instances:
        assert unset is None or unset in order.unset
        assert (order.argv[:2] == ["bash", "-lc"]) == bool(site.setup)
        assert order.env.items() >= {**site.env, variable: order.env[variable]}.items()


# ------------------------------------------------------------------------------------------- the real thing

PARSE = """
import json, sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
command = ServeSubcommand()
command.subparser_init(parser.add_subparsers(dest="subparser"))
wanted = ["model_tag", "served_model_name", "host", "port", "tensor_parallel_size", "pipeline_parallel_size",
          "data_parallel_size", "data_parallel_size_local", "data_parallel_address", "data_parallel_rpc_port",
          "data_parallel_start_rank", "nnodes", "node_rank", "master_addr", "master_port", "headless", "dtype"]
for line in sys.stdin:
    found = parser.parse_args(json.loads(line))
    command.validate(found)
    print("PARSED", json.dumps({name: getattr(found, name) for name in wanted}))
"""

MEANING = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
for line in sys.stdin:
    options = parser.parse_args(json.loads(line))
    options.model = options.model_tag
    config = AsyncEngineArgs.from_cli_args(options).create_engine_config(headless=options.headless).parallel_config
    print("MEANS", json.dumps([config.world_size, config.local_world_size, config.data_parallel_rank,
                                config.data_parallel_size_local, config.node_rank_within_dp, config.nnodes_within_dp,
                                config.data_parallel_hybrid_lb, config.data_parallel_external_lb]))
"""

SHAPES = [(1, 1, 1), (2, 1, 1), (1, 2, 2), (8, 1, 1), (4, 2, 1), (2, 1, 4), (1, 1, 8), (8, 1, 2), (4, 2, 2)]


def ask_vllm(venv: Path, program: str, mark: str, lines: list[list[str]], home: Path) -> list[Any]:
    environ: Mapping[str, str] = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    done = subprocess.run(
        [venv / "bin" / "python", "-c", program],
        input="".join(json.dumps(line) + "\n" for line in lines),
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    found = [
        json.loads(each.removeprefix(mark)) for each in done.stdout.splitlines() if each.startswith(mark)
    ]
    assert len(found) == len(lines), done.stderr[-3000:]
    return found


def real(command: list[str]) -> list[str]:
    """The arguments after `vllm`, as the agent fills them in."""
    return [arg.replace(PORT, "8000") for arg in command[1:]]


@pytest.mark.vllm
def test_the_real_parser_takes_every_command(vllm_venv: Path, tmp_path: Path) -> None:
    entries = [
        model(*shape, served_model_name="it's $(y)\n" if shape == (1, 1, 1) else None) for shape in SHAPES
    ]
    aurora = load_platform("aurora", Site.here({"AEGIS_PLATFORM_DIR": "/no/such", "HOME": "/no/such"}))
    lines = [real(command) for entry in entries for command in commands(entry)]
    lines += [
        real(command) for command in commands(model(24, extra_vllm_args=("--dtype", "float32")), aurora)
    ]
    parsed = ask_vllm(vllm_venv, PARSE, "PARSED", lines, tmp_path)
    for line, found in zip(lines, parsed, strict=True):
        assert found["model_tag"] == "org/m"
        assert found["port"] == 8000
        for flag in (
            "nnodes",
            "node-rank",
            "data-parallel-start-rank",
            "data-parallel-size-local",
            "master-port",
        ):
            if f"--{flag}" in line:
                assert str(found[flag.replace("-", "_")]) == line[line.index(f"--{flag}") + 1]
        assert found["headless"] == ("--headless" in line)
    assert parsed[0]["served_model_name"] == ["it's $(y)\n"]
    assert [found["dtype"] for found in parsed[-2:]] == ["float32", "float32"]


@pytest.mark.vllm
def test_the_flags_of_several_nodes_mean_what_we_think(
    vllm_venv: Path, tiny_model: Path, tmp_path: Path
) -> None:
    pair = Platform(name="pair", node=Node(devices=2))
    # by (tensor, pipeline, data): per node (world, of it here, data-parallel rank, replicas here, node in the replica,
    # nodes of the replica)
    wanted = {
        (4, 1, 1): [(4, 2, 0, 1, 0, 2), (4, 2, 0, 1, 1, 2)],
        (2, 2, 1): [(4, 2, 0, 1, 0, 2), (4, 2, 0, 1, 1, 2)],
        (2, 1, 2): [(2, 2, 0, 1, 0, 1), (2, 2, 1, 1, 0, 1)],
        (1, 1, 4): [(1, 1, 0, 2, 0, 1), (1, 1, 2, 2, 0, 1)],
        (4, 1, 2): [(4, 2, 0, 1, 0, 2), (4, 2, 0, 1, 1, 2), (4, 2, 1, 1, 0, 2), (4, 2, 1, 1, 1, 2)],
        (1, 1, 2): [(1, 1, 0, 2, 0, 1)],
    }
    lines = []
    for tp, pp, dp in wanted:
        entry = msgspec.structs.replace(model(tp, pp, dp), model=str(tiny_model))
        lines += [real(command) for command in commands(entry, pair)]
    found = ask_vllm(vllm_venv, MEANING, "MEANS", lines, tmp_path)
    one_address = [False, False]  # neither the hybrid nor the external load balancer: rank 0 serves all
    assert found == [[*node, *one_address] for nodes in wanted.values() for node in nodes]
