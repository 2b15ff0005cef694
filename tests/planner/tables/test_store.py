from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from aegis.errors import ConfigError, NotFoundError
from aegis.planner.tables.slices import Slice
from aegis.planner.tables.store import (
    Finding,
    TableError,
    TableInfo,
    file_name,
    open_tables,
    read_info,
    read_tables,
    shipped,
    write_tables,
)

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.planner.tables.slices import Key

ROWS = Slice((np.array([64, 64]), np.array([128, 128]), np.array([1, 8])), np.array([0.01, 0.02]))
GEMM: dict[str, dict[Key, Slice]] = {"gemm": {("bfloat16",): ROWS, ("fp8",): ROWS}}


def info(version: str = "1.0", system: str = "mine", **more: object) -> TableInfo:
    return TableInfo(system=system, backend="vllm", version=version, operations={}, **more)  # type: ignore[arg-type]


def write(folder: Path, version: str = "1.0", system: str = "mine", **more: object) -> Path:
    (folder / "current").mkdir(parents=True, exist_ok=True)
    file = folder / "current" / file_name(system, "vllm", version)
    write_tables(file, info(version, system, **more), GEMM)
    return file


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AEGIS_TABLES", str(tmp_path))
    return tmp_path


def test_what_was_written_is_read(own: Path) -> None:
    write(own, lossless=True)
    tables = open_tables("mine", "vllm")
    assert (tables.system, tables.backend, tables.version, tables.lossless) == ("mine", "vllm", "1.0", True)
    assert tables.keys("gemm") == (("bfloat16",), ("fp8",))
    assert tables.rows("gemm", ("fp8",)) == 2
    found = tables.load("gemm", ("fp8",))
    assert found is not None
    assert found.latency.tolist() == [0.01, 0.02]
    assert tables.load("gemm", ("fp8",)) is found


def test_what_is_not_there_is_none(own: Path) -> None:
    write(own)
    tables = open_tables("mine", "vllm")
    assert tables.keys("moe") == ()
    assert tables.load("gemm", ("nvfp4",)) is None
    assert tables.load("moe", ()) is None


def test_slices_that_are_alike_are_stored_once(own: Path) -> None:
    both = write(own).stat().st_size
    one = own / "one.table"
    write_tables(one, info(), {"gemm": {("fp8",): ROWS}})
    assert both - one.stat().st_size < 40


def test_the_newest_version_is_taken_unless_one_is_named(own: Path) -> None:
    for version in ("0.9.1", "0.10.0rc1", "0.10.0"):
        write(own, version)
    assert open_tables("mine", "vllm").version == "0.10.0"
    assert open_tables("mine", "vllm", "0.9.1").version == "0.9.1"
    with pytest.raises(ConfigError, match=r"no tables of vllm 7 on mine") as raised:
        open_tables("mine", "vllm", "7")
    assert raised.value.hint == "there is 0.9.1, 0.10.0rc1, 0.10.0"


def test_a_users_file_hides_the_shipped_one_of_its_version(own: Path) -> None:
    write(own, "1.3.0rc20", "h200_sxm")
    own_file = own / "current" / "h200_sxm-vllm-1.3.0rc20.table"
    own_file.rename(own / "current" / "h200_sxm-trtllm-1.3.0rc20.table")
    assert open_tables("h200_sxm", "trtllm").info.rows == 4


def test_heads_are_read_without_slices_and_list_the_users_tables(own: Path) -> None:
    file = write(own, origin="my own measurement", licence="CC0")
    data = file.read_bytes()
    found = [each for each in shipped() if each.system == "mine"]
    assert [(each.operations, each.origin, each.bytes) for each in found] == [
        ({"gemm": 4}, "my own measurement", len(data))
    ]


@pytest.mark.parametrize(
    ("system", "backend", "says", "hint"),
    [
        ("h200_sx", "vllm", "unknown system `h200_sx`", "did you mean `h200_sxm`?"),
        ("h200_sxm", "vlm", "no tables of vlm on h200_sxm", "there are tables of sglang, trtllm, vllm"),
        ("b60", "trtllm", "no tables of trtllm on b60", "there are tables of vllm"),
    ],
)
def test_tables_that_are_not_there_name_the_nearest(
    system: str, backend: str, says: str, hint: str, own: Path
) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        open_tables(system, backend)
    assert raised.value.hint == hint


def test_a_system_without_tables_says_so(own: Path) -> None:
    text = "memory_bandwidth: 1e12\nmemory_capacity: 1000\nflops: {}\ngpus_per_node: 4\nother_memory: 0\n"
    (own / "bare.yaml").write_text(text)
    with pytest.raises(NotFoundError, match="no measured tables of bare"):
        open_tables("bare", "vllm")


@pytest.mark.parametrize("keep", [0, 5, 12, 60, 200, -1])
def test_a_file_that_is_cut_short_is_an_error(keep: int, own: Path) -> None:
    file = write(own)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(TableError, match=file.name) as raised:
        read_tables(file)
    assert raised.value.hint


def test_a_file_whose_bytes_changed_is_an_error(own: Path) -> None:
    file = write(own)
    whole = file.read_bytes()
    for place in (3, 15, 40, len(whole) - 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(TableError, match=file.name):
            read_tables(file).load("gemm", ("fp8",))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot be read"):
        read_info(tmp_path / "none.table")
    with pytest.raises(TableError, match="cannot be read"):
        read_tables(tmp_path)


@pytest.mark.parametrize("latency", [-1.0, float("nan")])
def test_a_latency_that_is_none_is_not_written(latency: float, tmp_path: Path) -> None:
    rows = Slice(ROWS.axes, np.array([0.1, latency]))
    with pytest.raises(ValueError, match="negative or no number"):
        write_tables(tmp_path / "x.table", info(), {"gemm": {("fp8",): rows}})


def test_findings_are_told_for_the_slices_that_a_plan_uses(own: Path) -> None:
    wrong = Finding(
        system="mine", backend="vllm", operation="gemm", key=("fp8",), what="it is flat", factor=9, points=99
    )
    write(own, findings=(wrong,))
    tables = open_tables("mine", "vllm")
    assert tables.findings_for([("gemm", ("fp8",)), ("moe", ())]) == (wrong,)
    assert tables.findings_for([("gemm", ("bfloat16",))]) == ()
