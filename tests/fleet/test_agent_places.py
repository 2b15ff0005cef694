"""An agent finds its line, waits for what was there before it, and does not outlive its head for long."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from aegis.fleet.agent import guard
from aegis.fleet.agent.guard import Guard, wait_for_predecessor
from aegis.fleet.agent.main import read_order
from aegis.fleet.agent.node import Agent
from aegis.fleet.order import HEAD_SECONDS, NodeOrder
from aegis.registry.model import REMOVE_SECONDS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    file = tmp_path / "fleet"
    names = ["n10.site.org", "n1.site.org", "n2", "wörk", "n1-hsn"]
    lines = [
        json.dumps({"node": name, "registry": "r"}, ensure_ascii=False, separators=(",", ":"))
        for name in names
    ]
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("host", "slurm", "found"),
    [
        ("n1.site.org", "", "n1.site.org"),
        ("n1", "", "n1.site.org"),  # PBS names nodes with their domain, the host itself may not
        ("n2.site.org", "", "n2"),  # and the other way round
        ("wörk", "", "wörk"),
        ("node-0001", "n2", "n2"),  # Slurm may know a node by another name than it has
    ],
)
def test_a_node_finds_its_line_by_any_of_its_names(
    host: str, slurm: str, found: str, fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    if slurm:
        monkeypatch.setenv("SLURMD_NODENAME", slurm)
    assert read_order(str(fleet), "")["node"] == found


def test_the_whole_name_is_better_than_its_beginning(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.write_text('{"node":"127.0.0.2"}\n{"node":"127.0.0.3"}\n')
    monkeypatch.setattr(socket, "gethostname", lambda: "127.0.0.3")
    assert read_order(str(fleet), "")["node"] == "127.0.0.3"


@pytest.mark.parametrize("node", ["n1", "n3", "n"])
def test_a_name_that_was_given_is_the_whole_name(node: str, fleet: Path) -> None:
    with pytest.raises(SystemExit, match=f"has no line for node {node}"):
        read_order(str(fleet), node)


HOLD = """
import sys, time
from aegis.fleet.agent.guard import wait_for_predecessor
hold = wait_for_predecessor(sys.argv[1], "n1")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def earlier(tmp_path: Path) -> Any:
    """An earlier agent of the same node, as far as it matters."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_an_agent_waits_until_the_one_before_it_is_gone(tmp_path: Path, earlier: Any) -> None:
    found: list[socket.socket | None] = []
    waiting = threading.Thread(target=lambda: found.append(wait_for_predecessor(str(tmp_path), "n1")))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    earlier.kill()
    waiting.join(10)
    [hold] = found
    assert hold is not None
    hold.close()


def test_agents_of_other_nodes_and_launches_do_not_wait(tmp_path: Path, earlier: Any) -> None:
    for fleet, node in ((str(tmp_path), "n2"), (f"{tmp_path}/other", "n1")):
        hold = wait_for_predecessor(fleet, node)
        assert hold is not None
        hold.close()


def test_one_that_never_ends_is_not_waited_for_for_ever(
    tmp_path: Path, earlier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PREDECESSOR_SECONDS", 0.2)
    assert wait_for_predecessor(str(tmp_path), "n1") is None


def test_the_worker_holds_the_place_when_its_guard_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "agent"
    archive.write_text("import sys; print('up', flush=True); sys.stdin.read()")
    monkeypatch.setattr(sys, "argv", [str(archive)])
    monkeypatch.setattr(guard, "prctl", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    reading, writing = os.pipe()
    started = subprocess.Popen

    def popen(argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return started(argv, stdin=reading, stdout=subprocess.PIPE, **options)

    monkeypatch.setattr("subprocess.Popen", popen)
    hold = wait_for_predecessor(str(tmp_path), "n1")
    assert hold is not None
    worker = Guard([], 0, hold).worker
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"up\n"
    hold.close()  # as when the guard is killed
    monkeypatch.setattr(guard, "PREDECESSOR_SECONDS", 0.2)
    assert wait_for_predecessor(str(tmp_path), "n1") is None
    os.close(reading)
    os.close(writing)
    worker.wait(10)
    worker.stdout.close()
    again = wait_for_predecessor(str(tmp_path), "n1")
    assert again is not None
    again.close()


class Idle:
    """An instance that has nothing to tell."""

    def is_alive(self) -> bool:
        return True

    def report(self) -> dict[str, Any]:
        return {}


def test_servers_do_not_outlive_the_head_that_nobody_finds_any_more(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as taken:  # bound, not listening: nobody answers
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        agent = Agent({"node": "n1", "registry": url, "instances": [], "head_patience": 0.3}, {})
        agent.instances = [Idle()]  # type: ignore[list-item]
        before = time.monotonic()
        agent._report()
    assert 0.3 <= time.monotonic() - before < 10
    assert "no registry for 0 s: stopping" in capfd.readouterr().err


def test_the_patience_with_the_head_is_that_of_the_registry_with_a_node() -> None:
    assert NodeOrder(node="n", registry="r", push_interval=1.0, instances=[]).head_patience == HEAD_SECONDS
    assert HEAD_SECONDS >= REMOVE_SECONDS
