from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from aegis.fleet.agent.engine import granted
from aegis.fleet.agent.main import read_order, read_secrets
from aegis.fleet.agent.output import TAIL_LINES, TAIL_WIDTH, Output
from aegis.fleet.agent.ports import port_owner, reserve_port
from aegis.fleet.agent.processes import (
    MARK,
    SHIM,
    Wake,
    children_of,
    processes_marked,
    signal_quietly,
    wait_for_end,
)
from aegis.fleet.archive import agent_archive
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


SLEEPER = f"m.{os.getpid()}.1"  # tests may run side by side


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: SLEEPER}) as process:
        yield process
        process.kill()


# ------------------------------------------------------------------------------------------- ports


def test_a_port_is_held_against_other_agents_until_released() -> None:
    port = free_port()
    hold = reserve_port("127.0.0.1", port)
    assert hold is not None
    assert reserve_port("127.0.0.1", port) is None
    on_another_node = reserve_port("127.0.0.2", port)
    assert on_another_node is not None
    on_another_node.release()
    with socket.create_server(("127.0.0.1", port)):  # the engine itself is not kept out
        pass
    hold.release()
    again = reserve_port("127.0.0.1", port)
    assert again is not None
    again.release()


@pytest.mark.parametrize("listening_on", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("wanted_on", ["127.0.0.1", "0.0.0.0"])
def test_a_listening_port_is_taken(listening_on: str, wanted_on: str) -> None:
    with socket.create_server((listening_on, 0)) as other:
        port = other.getsockname()[1]
        assert reserve_port(wanted_on, port) is None
        assert f" by pid {os.getpid()} (" in port_owner(port)
    hold = reserve_port(wanted_on, port)
    assert hold is not None
    hold.release()


def test_a_port_that_is_nobodys_has_no_owner() -> None:
    assert port_owner(free_port()) == ""


def test_a_host_that_is_not_ours_is_not_reserved() -> None:
    assert reserve_port("203.0.113.1", 8000) is None


# ------------------------------------------------------------------------------------------- waiting


def test_a_wake_is_not_lost_and_not_kept() -> None:
    wake = Wake()
    for _ in range(100_000):  # a full pipe blocks nobody
        wake.set()
    assert wake.wait(10.0)
    while wake.wait(0.0):
        pass
    began = time.monotonic()
    assert not wake.wait(0.05)
    assert time.monotonic() - began >= 0.04


def test_waiting_for_a_process_ends_with_it(sleeper: subprocess.Popen[bytes]) -> None:
    wake = Wake()
    assert not wait_for_end(sleeper, wake, 0.01)
    threading.Timer(0.05, wake.set).start()
    began = time.monotonic()
    assert not wait_for_end(sleeper, wake, 30.0)
    threading.Timer(0.05, sleeper.kill).start()
    assert wait_for_end(sleeper, wake, 30.0)
    assert time.monotonic() - began < 10.0


def test_waiting_works_on_old_kernels(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    wake = Wake()
    assert not wait_for_end(sleeper, wake, 0.01)
    threading.Timer(0.05, wake.set).start()
    assert not wait_for_end(sleeper, wake, 30.0)
    sleeper.kill()
    assert wait_for_end(sleeper, wake, 30.0)


# ------------------------------------------------------------------------------------------- processes


def test_processes_are_found_by_their_whole_mark(sleeper: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10.0
    while sleeper.pid not in processes_marked(SLEEPER) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes_marked(SLEEPER) == [sleeper.pid]
    assert processes_marked(SLEEPER[:-1]) == []
    assert processes_marked(f"{SLEEPER}1") == []


def test_children_are_found_and_zombies_are_not(sleeper: subprocess.Popen[bytes]) -> None:
    assert sleeper.pid in children_of(os.getpid())
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert sleeper.pid not in children_of(os.getpid())


def test_a_signal_to_nobody_is_no_error(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    signal_quietly(os.kill, sleeper.pid, signal.SIGTERM)
    signal_quietly(os.killpg, sleeper.pid, signal.SIGTERM)


def test_the_shim_ends_when_its_parent_is_gone() -> None:
    command = [sys.executable, "-I", "-S", "-c", SHIM, "1", "", "echo", "started"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (143, b"")


def test_the_shim_says_what_cannot_run() -> None:
    command = [sys.executable, "-I", "-S", "-c", SHIM, str(os.getpid()), "", "/no/such $(x)"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 127
    assert done.stderr == b"aegis: cannot run /no/such $(x): No such file or directory\n"


# ------------------------------------------------------------------------------------------- output


def test_the_last_lines_are_kept_and_all_are_logged(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "log"))
    data = b"".join(b"line %d\n" % number for number in range(1000)) + b"\xff\xfe no newline"
    output.follow(io.BytesIO(data)).join(10.0)
    assert (tmp_path / "log").read_bytes() == data
    assert len(output.tail) == TAIL_LINES
    assert output.tail[-1] == "\ufffd\ufffd no newline"
    assert output.tail[-2] == "line 999"
    output.note("a word")
    output.close()
    assert (tmp_path / "log").read_text(errors="replace").endswith("] a word\n")


def test_an_endless_line_fills_no_memory(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "log"))
    output.follow(io.BytesIO(b"\xc3\xa4" * 1_000_000)).join(10.0)
    output.close()
    assert (tmp_path / "log").stat().st_size == 2_000_000
    assert max(len(line) for line in output.tail) <= TAIL_WIDTH


def test_the_log_is_written_again_when_it_can_be(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "folder" / "log"))
    output.note("lost")
    assert output.error == "log not written: No such file or directory"
    (tmp_path / "folder").mkdir()
    output.note("kept")
    assert output.error == ""
    output.close()
    assert "kept" in (tmp_path / "folder" / "log").read_text()


def test_the_log_is_opened_once_and_again_after_an_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    output = Output(str(log))
    output.note("one")
    opened = output._file
    output.note("two")
    assert output._file is opened
    assert opened is not None
    os.dup2(os.open("/dev/full", os.O_WRONLY), opened.fileno())
    output.note("lost")
    assert output.error == "log not written: No space left on device"
    output.note("three")
    assert output.error == ""
    output.close()
    assert [line.rpartition(" ")[2] for line in log.read_text().splitlines()] == ["one", "two", "three"]
    output.note("after the end")
    output.close()
    assert len(log.read_text().splitlines()) == 4


# ------------------------------------------------------------------------------------------- what it reads


@pytest.mark.parametrize("name", ["n-1", "n-10", 'a "quoted" \\ name', "knöten", "a b\tc"])
def test_a_node_finds_its_line(tmp_path: Path, name: str) -> None:
    import msgspec  # noqa: PLC0415 - as the launch writes the file

    names = ["n-1", "n-10", "n-100", 'a "quoted" \\ name', "knöten", "a b\tc"]
    file = tmp_path / "fleet"
    lines = [msgspec.json.encode({"node": each, "number": at}) for at, each in enumerate(names)]
    file.write_bytes(b"\n".join(lines) + b"\n")
    assert read_order(str(file), name) == {"node": name, "number": names.index(name)}


def test_without_a_name_it_is_this_host(tmp_path: Path) -> None:
    file = tmp_path / "fleet"
    short = socket.gethostname().partition(".")[0]
    file.write_text(json.dumps({"node": short, "x": 1}, separators=(",", ":")) + "\n")
    assert read_order(str(file), "")["x"] == 1
    file.write_text("")
    with pytest.raises(SystemExit, match="no line for node"):
        read_order(str(file), "")


def test_secrets_are_for_their_owner(tmp_path: Path) -> None:
    assert read_secrets("") == {}
    file = tmp_path / "secrets"
    file.write_text('{"env": {}}')
    for mode in (0o644, 0o640, 0o604, 0o620):
        file.chmod(mode)
        with pytest.raises(SystemExit, match="chmod 600"):
            read_secrets(str(file))
    file.chmod(0o600)
    assert read_secrets(str(file)) == {"env": {}}


@pytest.mark.parametrize("text", ["", '{"node":"n", broken\n'])
def test_a_broken_fleet_file_is_told_in_one_line(
    tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fleet"
    file.write_text(text)
    archive = tmp_path / "agent.pyz"
    archive.write_bytes(agent_archive())
    command = [sys.executable, "-I", str(archive), str(file), "--node", "n"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("aegis agent: ")
    assert len(done.stderr.splitlines()) == 1


def test_devices_are_named_as_the_node_grants_them() -> None:
    assert granted("0,1", "") == "0,1"
    assert granted("0,1", "4,6,7") == "4,6"
    assert granted("2", "GPU-aa,GPU-bb,GPU-cc") == "GPU-cc"
    assert granted("3", "0,1") == "3"  # fewer than we were told of: the engine will say so
