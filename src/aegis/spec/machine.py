"""What this machine has, for platforms that leave it open (`local`)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from aegis.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.spec.deployment import ModelEntry
    from aegis.spec.platform import Node

CPU_KIND = "CPU core"  # a device is a share of the cores where there is no accelerator


class Machine(Struct, frozen=True):
    """The devices and cores of this machine."""

    devices: int  # 0: no accelerator
    device_kind: str
    mask_variable: str | None
    cores: tuple[int, ...]  # the cores that this process may use


def detect_machine(root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> Machine:
    """Look for accelerators where the drivers list them; a mask in the environment leaves only those that it names."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    environ = os.environ if environ is None else environ
    nvidia = [file for file in _names(root / "dev") if re.fullmatch(r"nvidia\d+", file)]
    if nvidia and (count := _granted(len(nvidia), environ.get("CUDA_VISIBLE_DEVICES"))):
        return Machine(count, "NVIDIA GPU", "CUDA_VISIBLE_DEVICES", cores)
    topology = root / "sys/class/kfd/kfd/topology/nodes"
    amd = [name for name in _names(topology) if _has_compute_units(topology / name / "properties")]
    if amd and (count := _granted(len(amd), environ.get("HIP_VISIBLE_DEVICES"))):
        return Machine(count, "AMD GPU", "HIP_VISIBLE_DEVICES", cores)
    return Machine(0, CPU_KIND, None, cores)


def _granted(found: int, mask: str | None) -> int:
    return (
        found if mask is None else min(found, sum(name.strip() not in {"", "-1"} for name in mask.split(",")))
    )


def size_node(node: Node, machine: Machine, models: Sequence[ModelEntry], nodes: int = 1) -> Node:
    """Return the node with its number of devices known.

    Where there is no accelerator, the cores are shared out evenly: a device is one share, and there are as many as
    the models ask for. Only simulated servers may ask for more devices than there are cores.

    Raises:
        PlacementError: more CPU devices than cores.
    """
    if node.devices is not None:
        return node
    if machine.devices:
        return msgspec.structs.replace(
            node,
            devices=machine.devices,
            device_kind=machine.device_kind,
            mask_variable=machine.mask_variable,
        )
    wanted = sum(model.instances * model.devices for model in models)
    share = max(1, -(-wanted // nodes))
    cores = machine.cores
    if share <= len(cores):
        size = len(cores) // share
        slices = tuple(_span(cores[index * size : (index + 1) * size]) for index in range(share))
        return msgspec.structs.replace(
            node, devices=share, device_kind=CPU_KIND, mask_variable=None, device_cpus=slices
        )
    if all(model.engine == "sim" for model in models):
        return msgspec.structs.replace(
            node, devices=share, device_kind="simulated device", mask_variable=None
        )
    parts = " + ".join(f"{model.instances} x {model.devices} of {model.name}" for model in models)
    raise PlacementError(
        f"{wanted} devices are asked for ({parts}), and this machine has no accelerator and {len(cores)} CPU cores",
        hint="a CPU device is at least one core: ask for fewer instances or smaller parallel sizes",
    )


def _span(cores: Sequence[int]) -> str:
    return ",".join(str(core) for core in cores)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _has_compute_units(properties: Path) -> bool:
    """A node of the KFD topology is a GPU when it has SIMD units; CPUs are listed there too, with none."""
    try:
        match = re.search(r"^simd_count (\d+)$", properties.read_text(), re.MULTILINE)
    except OSError:
        return False
    return bool(match and int(match[1]))
