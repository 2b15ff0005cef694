"""Drivers, workers and programs that are killed at any moment: every result is there, whole, and once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

FILES = 60
CLIENT = (
    """sh -c 'sleep 0.0$(($$ % 7)); cat "$1" > "$2"/first; cat "$1" "$1" > "$2"/second' - {input} {output}"""
)


def start(source: Path, output: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "tests.mapper.files.driver", str(source), str(output), CLIENT, "2"]
    return subprocess.Popen(argv, stderr=subprocess.PIPE)


def mine(scratch: Path) -> list[int]:
    """Processes that have this scratch folder in their environment: workers, guards, programs."""
    wanted = f"TMPDIR={scratch}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def done(output: Path) -> int:
    return sum(name.endswith(".tar.gz") for _, _, names in os.walk(output) for name in names)


def wait_for(process: subprocess.Popen[bytes], output: Path, more: int) -> None:
    """Wait until there are so many more results, or the driver ends."""
    enough, until = done(output) + more, time.monotonic() + 20
    while process.poll() is None and done(output) < enough and time.monotonic() < until:
        time.sleep(0.002)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def whole(output: Path, name: str, text: bytes) -> bool:
    with tarfile.open(output / f"{name}.tar.gz") as tar:
        found = {each.name: tar.extractfile(each) for each in tar if each.isfile()}
        return {each: file.read() for each, file in found.items() if file} == {
            f"{Path(name).name}/first": text,
            f"{Path(name).name}/second": text * 2,
        }


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_the_same_command_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    source, output, scratch = tmp_path / "in", tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    texts = {
        f"d{number % 3}/{number}.txt": chance.randbytes(chance.randrange(5000)) for number in range(FILES)
    }
    for name, text in texts.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(text)

    for _ in range(6):
        with start(source, output) as process:
            time.sleep(chance.uniform(0, 0.3))
            wait_for(process, output, chance.randrange(5))
            kill(chance.choice(mine(scratch) or [process.pid]))  # worker, guard, program or driver
            wait_for(process, output, chance.randrange(5))
            process.kill()
    for _ in range(2):  # once more: there is nothing left to do
        with start(source, output) as process:
            _, told = process.communicate(timeout=60)
        assert (process.returncode, told) == (0, b"")

    assert {str(each.relative_to(output)) for each in output.rglob("*") if each.is_file()} == {
        ".aegis-map/journal",
        *(f"{name}.tar.gz" for name in texts),
    }
    assert all(whole(output, name, text) for name, text in texts.items())
    until = time.monotonic() + 10
    while mine(scratch) and time.monotonic() < until:
        time.sleep(0.02)
    assert mine(scratch) == []
