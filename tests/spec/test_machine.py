from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aegis.errors import PlacementError
from aegis.spec.deployment import ModelEntry
from aegis.spec.machine import CPU_KIND, Machine, detect_machine, size_node
from aegis.spec.platform import Node

if TYPE_CHECKING:
    from pathlib import Path

NOTHING = Machine(0, CPU_KIND, None, (0, 1, 2, 3, 4, 5, 6, 7))


def test_nvidia_devices_are_counted_and_not_their_helpers(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        (tmp_path / "dev" / name).touch()
    machine = detect_machine(tmp_path)
    assert (machine.devices, machine.mask_variable) == (3, "CUDA_VISIBLE_DEVICES")


def test_amd_devices_are_nodes_with_compute_units(tmp_path: Path) -> None:
    for number, units in enumerate((0, 0, 440, 440)):
        node = tmp_path / "sys/class/kfd/kfd/topology/nodes" / str(number)
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 0\nsimd_count {units}\nmem_banks_count 1\n")
    machine = detect_machine(tmp_path)
    assert (machine.devices, machine.mask_variable) == (2, "HIP_VISIBLE_DEVICES")


def test_a_bare_machine_has_cores(tmp_path: Path) -> None:
    machine = detect_machine(tmp_path)
    assert (machine.devices, machine.device_kind, machine.mask_variable) == (0, CPU_KIND, None)
    assert machine.cores


def test_a_profile_that_says_its_devices_is_kept() -> None:
    node = Node(devices=12)
    assert size_node(node, NOTHING, [ModelEntry(model="m")]) is node


def test_detected_devices_fill_the_gap() -> None:
    sized = size_node(Node(), Machine(3, "AMD GPU", "HIP_VISIBLE_DEVICES", (0,)), [ModelEntry(model="m")])
    assert (sized.devices, sized.device_kind, sized.mask_variable) == (3, "AMD GPU", "HIP_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("models", "cpus"),
    [
        ([ModelEntry(model="m")], ("0,1,2,3,4,5,6,7",)),
        ([ModelEntry(model="m", instances=2)], ("0,1,2,3", "4,5,6,7")),
        ([ModelEntry(model="m", instances=2), ModelEntry(model="n")], ("0,1", "2,3", "4,5")),
        ([ModelEntry(model="m", tensor_parallel_size=8)], tuple("01234567")),
    ],
)
def test_cores_are_shared_out_evenly(models: list[ModelEntry], cpus: tuple[str, ...]) -> None:
    sized = size_node(Node(), NOTHING, models)
    assert (sized.devices, sized.device_cpus, sized.mask_variable) == (len(cpus), cpus, None)


def test_more_engines_than_cores_are_refused_with_the_arithmetic() -> None:
    models = [ModelEntry(model="m", instances=2, tensor_parallel_size=4), ModelEntry(model="n")]
    with pytest.raises(PlacementError, match=r"9 devices .*\(2 x 4 of m \+ 1 x 1 of n\).* 8 CPU cores"):
        size_node(Node(), NOTHING, models)


def test_simulated_servers_may_be_more_than_the_cores() -> None:
    sized = size_node(Node(), NOTHING, [ModelEntry(model="m", engine="sim", instances=200)], nodes=50)
    assert sized.devices == 4
    sized = size_node(Node(), NOTHING, [ModelEntry(model="m", engine="sim", instances=200)])
    assert (sized.devices, sized.device_kind, sized.device_cpus) == (200, "simulated device", ())


def test_a_mask_leaves_only_the_devices_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for number in range(4):
        (tmp_path / "dev" / f"nvidia{number}").touch()
    assert detect_machine(tmp_path, {"CUDA_VISIBLE_DEVICES": "2,3"}).devices == 2
    assert detect_machine(tmp_path, {"CUDA_VISIBLE_DEVICES": ""}).device_kind == CPU_KIND
    assert detect_machine(tmp_path, {}).devices == 4
