from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aegis.errors import ConfigError
from aegis.planner.systems import load_system, own_folder, system_names

if TYPE_CHECKING:
    from pathlib import Path

MEASURED = {
    *("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm"),
    *("gb200", "gb300", "l40s", "rtx_pro_6000_server", "b60"),
}


def test_every_system_that_has_tables_is_described() -> None:
    assert set(system_names()) >= MEASURED
    assert set(system_names(era="guide")) >= {"h200_sxm", "h100_sxm", "b200_sxm", "gb200_sxm"}


@pytest.mark.parametrize("name", sorted(system_names()))
def test_a_description_is_plausible(name: str) -> None:
    system = load_system(name)
    assert system.name == name
    assert system.title
    assert system.source
    assert system.flops["bfloat16"] > 1e13
    assert 1e11 < system.memory_bandwidth < 1e14
    assert 8 * 2**30 < system.memory_capacity < 1e12
    assert system.nccl_memory[1] == 0
    assert 0 < system.memory_efficiency <= 1


def test_the_guide_knew_other_figures_than_today() -> None:
    now, then = load_system("h200_sxm"), load_system("h200_sxm", era="guide")
    assert (now.inter_node_bandwidth, then.inter_node_bandwidth) == (50e9, 25e9)
    assert load_system("b200_sxm", era="guide").memory_bandwidth == 8e12
    assert load_system("gb200_sxm", era="guide").gpus_per_node == 72


def test_links_of_a_rack_reach_over_its_nodes_and_no_further() -> None:
    system = load_system("gb200")
    assert [system.bandwidth(gpus) for gpus in (4, 72, 73)] == [9e11, 9e11, 1e11]


def test_an_unknown_system_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as raised:
        load_system("h200_sx")
    assert raised.value.hint == "did you mean `h200_sxm`?"


def test_a_users_description_hides_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_TABLES", str(tmp_path))
    text = "memory_bandwidth: 1e12\nmemory_capacity: 1000\nflops: {bfloat16: 1e14}\ngpus_per_node: 4\n"
    text += "intra_node_bandwidth: 1e11\ninter_node_bandwidth: 1e10\nnccl_memory: {1: 0}\nother_memory: 0\n"
    (tmp_path / "h200_sxm.yaml").write_text(text)
    assert load_system("h200_sxm").memory_capacity == 1000
    assert load_system("h200_sxm", era="guide").memory_capacity > 1000


@pytest.mark.parametrize("line", ["gpus_per_nod: 4", "memory_bandwidth: fast"])
def test_a_wrong_description_names_file_and_key(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_TABLES", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_system("mine")


def test_own_tables_lie_beside_own_platforms_unless_said() -> None:
    assert str(own_folder({"HOME": "/home/ada"})) == "/home/ada/.config/aegis/tables"
    assert str(own_folder({"HOME": "/home/ada", "XDG_CONFIG_HOME": "/x"})) == "/x/aegis/tables"
    assert str(own_folder({"AEGIS_TABLES": "/data"})) == "/data"
