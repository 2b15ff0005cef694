"""The site profiles against the facts they were written from."""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any

import msgspec
import pytest
import yaml

from aegis.cpulist import parse_cpulist
from aegis.placement import place
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.platform import Platform, Queue
from aegis.spec.walltime import parse_walltime

NAMES = [
    "aurora",
    "frontier",
    "generic-pbs",
    "generic-slurm",
    "killarney",
    "local",
    "perlmutter",
    "polaris",
]
DETECTED = {"generic-pbs", "generic-slurm", "local"}


def load(name: str) -> Platform:
    text = files("aegis").joinpath("data", "platforms", f"{name}.yaml").read_text(encoding="utf-8")
    return msgspec.convert(yaml.safe_load(text), Platform)


def at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def test_these_are_all_profiles() -> None:
    folder = files("aegis").joinpath("data", "platforms")
    assert sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_profile_is_sound(name: str) -> None:
    platform = load(name)
    node = platform.node
    assert platform.name == name
    assert platform.description
    assert {"localhost", "127.0.0.1"} <= set(platform.network.no_proxy)
    assert {*platform.defaults, *platform.required} <= set(Deployment.__struct_fields__)
    assert node.mask_variable not in platform.env  # the agent sets it, per server
    assert not set(platform.env) & set(platform.unset)
    assert (node.devices is None) == (name in DETECTED)
    assert len(node.device_cpus) in {0, node.devices}
    cpus = [cpu for text in node.device_cpus for cpu in parse_cpulist(text)]
    assert len(cpus) == len(set(cpus))
    devices = [device for socket in node.sockets for device in socket]
    assert not devices or sorted(devices) == list(range(node.devices or 0))
    for text in [platform.defaults["walltime"]] if "walltime" in platform.defaults else []:
        assert parse_walltime(text)


@pytest.mark.parametrize("name", NAMES)
def test_queues_are_sound(name: str) -> None:
    for queue in load(name).queues:
        assert queue.max_nodes is not None
        assert queue.min_nodes <= queue.max_nodes
        assert queue.max_walltime is not None
        assert parse_walltime(queue.max_walltime)


@pytest.mark.parametrize("name", sorted(set(NAMES) - DETECTED))
def test_every_tensor_size_is_placed(name: str) -> None:
    node = load(name).node
    assert node.devices
    for size in range(1, node.devices + 1):
        entry = ModelEntry(model="M", instances=node.devices // size, tensor_parallel_size=size)
        placement = place([entry], node, port_start=8000, reserved_ports=[8471])
        assert placement.nodes == 1
        assert all(
            bool(instance.members[0].cpus) == bool(node.device_cpus) for instance in placement.instances
        )


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("aurora", "scheduler", "pbs"),
        ("aurora", "launcher", "mpiexec"),
        ("aurora", "node.devices", 12),
        ("aurora", "node.device_kind", "tile"),
        ("aurora", "node.device_memory_gib", 64),
        ("aurora", "node.devices_per_card", 2),
        ("aurora", "node.sockets", ((0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11))),
        ("aurora", "node.mask_variable", "ZE_AFFINITY_MASK"),
        ("aurora", "node.memory_gib", 1024),
        ("aurora", "network.host_suffix", ".hsn.cm.aurora.alcf.anl.gov"),
        ("aurora", "network.http_proxy", "http://proxy.alcf.anl.gov:3128"),
        ("aurora", "setup", ("module load frameworks",)),
        ("aurora", "env.ZE_FLAT_DEVICE_HIERARCHY", "FLAT"),
        ("aurora", "env.NUMEXPR_MAX_THREADS", "208"),
        ("aurora", "env.CCL_PROCESS_LAUNCHER", "torchrun"),
        ("aurora", "unset", ("ONEAPI_DEVICE_SELECTOR",)),
        ("aurora", "weights_dir", "/flare/datasets/model-weights/hub"),
        ("aurora", "defaults", {"walltime": "01:00:00", "filesystems": "flare:home"}),
        ("aurora", "required", ("account", "walltime", "filesystems")),
        ("aurora", "directives", ("-l place=scatter",)),
        ("polaris", "scheduler", "pbs"),
        ("polaris", "node.devices", 4),
        ("polaris", "node.device_memory_gib", 40),
        ("polaris", "node.mask_variable", "CUDA_VISIBLE_DEVICES"),
        ("polaris", "node.memory_gib", 512),
        ("polaris", "network.host_suffix", ".hsn.cm.polaris.alcf.anl.gov"),
        ("polaris", "weights_dir", "/eagle/datasets/model-weights/hub"),
        ("polaris", "defaults", {"walltime": "01:00:00", "filesystems": "eagle:home"}),
        ("polaris", "required", ("account", "walltime", "filesystems")),
        ("polaris", "setup", ("module use /soft/modulefiles", "module load conda", "conda activate")),
        ("frontier", "scheduler", "slurm"),
        ("frontier", "launcher", "srun"),
        ("frontier", "node.devices", 8),
        ("frontier", "node.device_kind", "GCD"),
        ("frontier", "node.device_memory_gib", 64),
        ("frontier", "node.devices_per_card", 2),
        ("frontier", "node.mask_variable", "HIP_VISIBLE_DEVICES"),
        ("frontier", "node.local_path", "/mnt/bb/$USER"),
        ("frontier", "network.http_proxy", "http://proxy.ccs.ornl.gov:3128"),
        ("frontier", "directives", ("-C nvme",)),
        ("frontier", "required", ("account", "walltime")),
        ("perlmutter", "node.devices", 4),
        ("perlmutter", "node.device_memory_gib", 40),
        ("perlmutter", "node.memory_gib", 256),
        ("perlmutter", "directives", ("-C gpu",)),
        ("perlmutter", "gpus", "gpus-per-node"),
        ("killarney", "gpus", "gres"),
        ("killarney", "gpu_type", "l40s"),
        ("killarney", "node.devices", 4),
        ("killarney", "node.device_memory_gib", 48),
        ("killarney", "node.local_path", "$SLURM_TMPDIR"),
        ("killarney", "weights_dir", "/model-weights"),
        ("generic-slurm", "scheduler", "slurm"),
        ("generic-slurm", "launcher", "srun"),
        ("generic-pbs", "scheduler", "pbs"),
        ("local", "scheduler", "local"),
        ("local", "launcher", "local"),
        ("local", "nodes", 1),
        ("local", "node.mask_variable", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_fact(name: str, path: str, value: Any) -> None:
    assert at(load(name), path) == value


@pytest.mark.parametrize(
    ("name", "device", "cpus"),
    [
        ("aurora", 0, (*range(1, 9), *range(105, 113))),
        ("aurora", 5, (*range(41, 49), *range(145, 153))),
        ("aurora", 6, (*range(53, 61), *range(157, 165))),
        ("aurora", 11, (*range(93, 101), *range(197, 205))),
        ("polaris", 0, (*range(24, 32), *range(56, 64))),
        ("polaris", 3, (*range(8), *range(32, 40))),
        ("frontier", 0, tuple(range(49, 56))),
        ("frontier", 1, tuple(range(57, 64))),
        ("frontier", 2, tuple(range(17, 24))),
        ("frontier", 3, tuple(range(25, 32))),
        ("frontier", 4, tuple(range(1, 8))),
        ("frontier", 5, tuple(range(9, 16))),
        ("frontier", 6, tuple(range(33, 40))),
        ("frontier", 7, tuple(range(41, 48))),
    ],
)
def test_cpus_beside_a_device(name: str, device: int, cpus: tuple[int, ...]) -> None:
    assert parse_cpulist(load(name).node.device_cpus[device]) == cpus


@pytest.mark.parametrize("reserved", [0, 52, 104, 156])
def test_aurora_leaves_the_cores_of_the_system_alone(reserved: int) -> None:
    assert all(reserved not in parse_cpulist(text) for text in load("aurora").node.device_cpus)


def test_aurora_vllm_arguments() -> None:
    assert load("aurora").engine_args["vllm"] == (
        "--dtype",
        "bfloat16",
        "--enforce-eager",
        "--disable-custom-all-reduce",
        "--distributed-executor-backend",
        "mp",
    )


def limits(queue: Queue) -> tuple[str, str | None, int, int | None, str | None]:
    return (queue.name, queue.routes_from, queue.min_nodes, queue.max_nodes, queue.max_walltime)


@pytest.mark.parametrize(
    ("name", "queues"),
    [
        (
            "aurora",
            [
                ("debug", None, 1, 2, "01:00:00"),
                ("debug-scaling", None, 2, 256, "01:00:00"),
                ("small", "prod", 256, 1024, "12:00:00"),
                ("medium", "prod", 1025, 1999, "18:00:00"),
                ("large", "prod", 2000, 10624, "24:00:00"),
                ("capacity", None, 1, 16, "168:00:00"),
            ],
        ),
        (
            "polaris",
            [
                ("debug", None, 1, 2, "01:00:00"),
                ("debug-scaling", None, 1, 10, "01:00:00"),
                ("small", "prod", 10, 24, "03:00:00"),
                ("medium", "prod", 25, 99, "06:00:00"),
                ("large", "prod", 100, 496, "24:00:00"),
                ("preemptable", None, 1, 10, "72:00:00"),
                ("capacity", None, 1, 4, "168:00:00"),
            ],
        ),
        (
            "frontier",
            [
                ("batch", None, 1, 91, "02:00:00"),
                ("batch", None, 92, 183, "06:00:00"),
                ("batch", None, 184, 9472, "12:00:00"),
                ("extended", None, 1, 64, "24:00:00"),
            ],
        ),
    ],
)
def test_queue_limits(name: str, queues: list[tuple[str, str | None, int, int | None, str | None]]) -> None:
    assert [limits(queue) for queue in load(name).queues] == queues


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("aurora-uan-0009", "aurora"),
        ("x4102c5s0b0n0", "aurora"),
        ("polaris-login-02", "polaris"),
        ("x3001c0s13b0n0", "polaris"),
        ("login05.frontier.olcf.ornl.gov", "frontier"),
        ("frontier00321", "frontier"),
        ("laptop", None),
    ],
)
def test_a_host_name_points_at_one_profile(host: str, name: str | None) -> None:
    matching = [each for each in NAMES if any(fnmatchcase(host, pattern) for pattern in load(each).hostnames)]
    assert matching == ([name] if name else [])
