"""A process is its pid and its start time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aegis.processes import is_alive, signal_process, start_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_live_process_has_a_start_time(sleeper: subprocess.Popen[bytes]) -> None:
    started = start_of(sleeper.pid)
    assert started is not None
    assert started == start_of(sleeper.pid)
    assert is_alive(sleeper.pid, started)


def test_another_process_of_the_same_pid_is_not_it(sleeper: subprocess.Popen[bytes]) -> None:
    started = start_of(sleeper.pid)
    assert started is not None
    assert not is_alive(sleeper.pid, started - 1)
    assert not signal_process(sleeper.pid, started - 1, signal.SIGKILL)
    assert sleeper.poll() is None


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen(["true"])
    deadline = time.monotonic() + 10
    while start_of(process.pid) is not None:
        assert time.monotonic() < deadline
    assert Path(f"/proc/{process.pid}").exists()
    assert process.wait() == 0


def test_a_name_with_brackets_and_spaces_is_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    program = tmp_path_factory.mktemp("x") / "a) S 1 (b"
    program.symlink_to(sys.executable)
    process = subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        started = start_of(process.pid)
        uptime = float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK")
        assert started is not None
        assert abs(uptime - started) < 60 * os.sysconf("SC_CLK_TCK")
    finally:
        process.communicate(b"\n")


@pytest.mark.parametrize("pid", [None, 0, -1, 2**22 + 1])
def test_no_such_process(pid: int | None) -> None:
    assert not is_alive(pid, 1)
    assert not is_alive(pid, None)
    if pid is not None:
        assert not signal_process(pid, 1, signal.SIGTERM)


@pytest.mark.parametrize("kernel", ["this", "old", "older python"])
def test_that_very_process_is_signalled(
    sleeper: subprocess.Popen[bytes], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    if kernel == "old":
        monkeypatch.setattr(os, "pidfd_open", refuse)
    elif kernel == "older python":
        monkeypatch.delattr(os, "pidfd_open")
    started = start_of(sleeper.pid)
    assert started is not None
    assert not signal_process(sleeper.pid, started - 1, signal.SIGTERM)
    assert signal_process(sleeper.pid, started, signal.SIGTERM)
    assert sleeper.wait(10) == -signal.SIGTERM
    assert not signal_process(sleeper.pid, started, signal.SIGTERM)
