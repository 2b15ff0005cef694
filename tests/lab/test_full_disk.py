"""A full disk under the run directory: nothing starts in it, and what serves goes on serving."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

import pytest

from .conftest import chat, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import Job, Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
FIRST, SECOND = "rehearsal-1B-0", "rehearsal-1B-1"


@pytest.fixture
def disk(lab: Lab) -> Iterator[Path]:
    """A small file system of its own."""
    place = lab.path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k,nr_inodes=200", "aegis-test", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        lab.close()  # before its files go
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take all of its space, to the last byte."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):  # full
                while file.write(b"x" * size):
                    pass
    return filler


@pytest.mark.parametrize("command", ["launch", "submit"])
def test_full_at_the_start(lab: Lab, disk: Path, command: str) -> None:
    fill(disk)
    said = lab.aegis(command, "--config", lab.deployment(log_dir=str(disk / "logs")), code=1)
    assert said.out == ""
    assert "No space left on device" in said.err
    assert " hint: choose another" in said.err
    assert lab.is_empty()
    assert lab.aegis("status").out == ""


def restart_of_first(job: Job, number: int) -> None:
    """Let a server die, so that everybody has something to write and to tell."""
    job.engine(FIRST).kill()
    wait_until(lambda: job.service(FIRST)["metadata"].get("restarts") == number)
    job.wait_for(FIRST, "healthy")


def test_filled_while_serving(lab: Lab, disk: Path) -> None:
    job = lab.submit(instances=2, log_dir=str(disk / "logs"), extra_sim_args=["--access-log"])
    endpoints = job.endpoints
    fill(disk)
    for _ in range(100):  # a file may grow to the end of the block that it has
        assert chat(endpoints[1], "rehearsal-1B")["choices"]
    restart_of_first(job, 1)
    wait_until(lambda: job.endpoints == endpoints, "endpoints, elsewhere, are kept", 5)
    wait_until(lambda: "No space left" in job.service(SECOND)["metadata"].get("log_error", ""))
    assert job.status()["model_status"] == "READY"
    (disk / "filler").unlink()
    assert chat(endpoints[1], "rehearsal-1B")["choices"]
    restart_of_first(job, 2)
    wait_until(lambda: "log_error" not in job.service(SECOND)["metadata"])
    lab.aegis("shutdown", job.handle)
    assert lab.is_empty()


def test_shutdown_on_a_full_disk(lab: Lab, disk: Path) -> None:
    job = lab.submit(log_dir=str(disk / "logs"))
    fill(disk)
    lab.aegis("shutdown", job.handle)
    assert lab.is_empty()
    assert not (lab.work / "aegis_endpoints.txt").exists()


def test_endpoints_file_on_the_full_disk(lab: Lab, disk: Path) -> None:
    job = lab.submit(instances=2, endpoints_file=str(disk / "endpoints.txt"))
    endpoints = job.endpoints
    fill(disk)
    job.engine(FIRST).kill()
    wait_until(lambda: f"warning: {disk / 'endpoints.txt'} cannot be written: No space left" in job.log)
    assert job.endpoints == endpoints, "the old content is intact"
    (disk / "filler").unlink()
    job.wait_for(FIRST, "healthy")
    job.engine(SECOND).kill()
    wait_until(lambda: job.endpoints == endpoints[:1], "it is current again")
    wait_until(lambda: job.endpoints == endpoints)
