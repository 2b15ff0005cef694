from __future__ import annotations

import os
import subprocess
import threading
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.fleet.endpoints import EndpointsFile, endpoint_lines
from aegis.registry.model import Service, Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OTHERS: list[Status] = [status for status in get_args(Status) if status != "healthy"]


def service(
    name: str, port: int = 8000, status: Status = "healthy", *, rank: int = 0, position: object = None
) -> Service:
    return Service(
        service_id=name,
        host="h",
        port=port,
        service_type="vllm",
        status=status,
        last_seen=0.0,
        metadata={"rank": rank, "position": position},
    )


def test_only_healthy_heads_in_the_order_of_the_deployment() -> None:
    services = [
        service("a-1", 10, position=3),
        service("a-0", 2, position=2),
        service("z-0", 3, position=0),
        service("z-0.rank1", 4, rank=1, position=0),
        service("stranger", 9),
        *(service(f"s-{at}", 5, status, position=1) for at, status in enumerate(OTHERS)),
    ]
    assert endpoint_lines(services) == ["h:3", "h:2", "h:10", "h:9"]


@given(st.lists(st.text(), unique=True), st.data())
def test_any_id_and_position_has_a_place(names: list[str], data: st.DataObject) -> None:
    positions = st.none() | st.integers() | st.text()
    services = [service(name, at, position=data.draw(positions)) for at, name in enumerate(names)]
    lines = endpoint_lines(services)
    assert lines == endpoint_lines(reversed(services))
    assert sorted(lines) == sorted(f"h:{at}" for at in range(len(names)))


def test_it_is_written_when_it_changes(tmp_path: Path) -> None:
    file = EndpointsFile(tmp_path / "endpoints.txt")
    assert file.update([])  # empty, rather than that of an earlier run
    assert file.path.read_text() == ""
    assert file.update([service("m-0")])
    assert not file.update([service("m-0")])
    assert file.path.read_text() == "h:8000\n"
    assert file.update([])
    assert file.path.read_text() == ""
    assert list(tmp_path.iterdir()) == [file.path]


def test_it_is_never_seen_half_written(tmp_path: Path) -> None:
    file = EndpointsFile(tmp_path / "endpoints.txt")
    few, many = [service("m-0", 1)], [service(f"m-{at}", 1) for at in range(5000)]
    file.update(few)
    whole = {"h:1\n" * len(each) for each in (few, many)}
    seen: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(file.path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for at in range(40):
        file.update(few if at % 2 else many)
    stop.set()
    reader.join()
    assert seen <= whole


def test_it_removes_only_its_own(tmp_path: Path) -> None:
    file = EndpointsFile(tmp_path / "endpoints.txt")
    file.path.write_text("somebody:1\n")
    file.remove()  # nothing was written yet
    assert file.path.exists()
    file.update([service("m-0")])
    file.path.write_text("somebody:1\n")
    file.remove()
    assert file.path.read_text() == "somebody:1\n"
    file.update([])
    file.remove()
    assert not file.path.exists()
    file.remove()


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    file = EndpointsFile(tmp_path / "no" / "endpoints.txt")
    assert not file.update([service("m-0")])
    assert file.problem.endswith("cannot be written: No such file or directory; it is out of date")
    file.path.parent.mkdir()
    assert file.update([service("m-0")])
    assert file.problem == ""


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system of our own can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_the_old_content(full_disk: Path) -> None:
    file = EndpointsFile(full_disk / "endpoints.txt")
    assert file.update([service("m-0")])
    filler = full_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"x" * 1_000_000)
    assert not file.update([service("m-0"), service("m-1")])
    assert "No space left on device" in file.problem
    assert file.path.read_text() == "h:8000\n"
    filler.unlink()
    assert file.update([service("m-0"), service("m-1")])
    assert file.problem == ""
    assert {entry.name for entry in full_disk.iterdir()} == {"endpoints.txt"}
