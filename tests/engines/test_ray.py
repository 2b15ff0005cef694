"""Ray's part of an instance: its words, and its shell run with a stand-in that is a real process with a real port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from aegis.engines import engine, ray
from aegis.engines.base import Start
from aegis.placement import PORT_STRIDE, place
from aegis.preflight import check_entry
from aegis.spec.deployment import ModelEntry
from aegis.spec.machine import CPU_KIND
from aegis.spec.platform import Node, Platform
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SITE = Platform(
    name="s", node=Node(devices=4), engine_args={"vllm": ("--distributed-executor-backend", "mp", "--site")}
)
PATIENCE = 20.0


def starts(entry: ModelEntry, platform: Platform = SITE, **changes: Any) -> list[Start]:
    instance = place([entry], platform.node, port_start=8000).instances[0]
    return [
        msgspec.structs.replace(
            Start(
                entry=entry,
                instance=instance,
                member=member,
                platform=platform,
                weights="/w",
                weights_are_local=True,
                address=f"n{member.node}",
                bind="0.0.0.0",
                master="n0",
                executable="/v e/bin/vllm",
                python="python3",
            ),
            **changes,
        )
        for member in instance.members
    ]


def model(tp: int = 8, **keys: Any) -> ModelEntry:
    return ModelEntry(model="org/m", tensor_parallel_size=tp, distributed_executor="ray", **keys)


def test_rank_zero_starts_the_head_and_the_engine_and_the_others_only_ray() -> None:
    head, member = [engine("vllm").command(start) for start in starts(model())]
    for words in (head, member):
        assert words[:2] == ("bash", "-c")
        assert words[3:9] == ("aegis", words[4], "n0", "9048", "2", "9056")
        assert words[9:11] == ("/v e/bin/ray", "start")
        assert {"--num-gpus=4", "--num-cpus=4", "--dashboard-agent-listen-port=9057"} <= set(words)
    assert (head[4], member[4]) == ("n0", "n1")
    assert member[-1] == "--"
    served = head[head.index("--") + 1 :]
    assert served[:3] == ("/v e/bin/vllm", "serve", "/w")
    # the site's own executor gives way: it would win by standing last
    assert served[-3:] == ("--site", "--distributed-executor-backend", "ray")
    assert served.count("--distributed-executor-backend") == 1
    assert not {"--nnodes", "--headless", "--master-addr"} & set(served)


def test_ray_is_not_needed_on_one_node() -> None:
    [command] = [engine("vllm").command(start) for start in starts(model(4))]
    assert command[0] == "/v e/bin/vllm"
    assert command[-3:] == ("--distributed-executor-backend", "mp", "--site")


def test_the_simulated_engine_is_rehearsed_without_ray() -> None:
    for start in starts(model(engine="sim")):
        assert "bash" not in engine("sim").command(start)


def test_a_cluster_is_open_to_none_but_its_members() -> None:
    assert engine("vllm").environment(starts(model())[0])["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_MODE" not in engine("vllm").environment(starts(model(4))[0])
    assert not [word for word in engine("vllm").command(starts(model())[0]) if ray.TOKEN_VARIABLE in word]


def test_cpus_are_given_out_where_they_are_the_devices() -> None:
    node = Node(devices=2, device_kind=CPU_KIND, mask_variable=None)
    command = engine("vllm").command(starts(model(4), Platform(name="cpu", node=node))[0])
    assert "--num-cpus=2" in command
    assert not [word for word in command if word.startswith("--num-gpus")]


def test_its_ports_are_the_members_own() -> None:
    assert ray.AGENT_PORT_OFFSET < PORT_STRIDE
    assert ray.HEAD_PORT_OFFSET + ray.HEAD_PORTS <= ray.CLIENT_PORT_OFFSET


def test_a_program_on_the_path_has_ray_on_the_path() -> None:
    assert engine("vllm").command(starts(model(), executable="vllm")[0])[9] == "ray"


@pytest.mark.parametrize("entry", [model(engine="sglang"), model(data_parallel_size=2)])
def test_where_ray_cannot_be_it_is_a_problem_of_that_line(entry: ModelEntry) -> None:
    [problem] = check_entry(entry, {"distributed_executor": "file.yaml:7"})
    assert problem.where == "file.yaml:7"
    assert "Ray" in problem.message
    assert problem.hint is not None


def test_where_ray_can_be_there_is_no_problem() -> None:
    assert check_entry(model(), {}) == []
    assert check_entry(model(engine="sim"), {}) == []


# ------------------------------------------------------------------------------------------- its shell

# `ray start --head` leaves a daemon that listens; with --address it joins, and stays where it is told to block.
RAY = """
import os, pathlib, signal, socket, subprocess, sys, time

options = dict(word.partition("=")[::2] for word in sys.argv[1:])
room = pathlib.Path(os.environ["ROOM"])
with (room / "argv").open("a") as file:
    file.write(repr(sys.argv[1:]) + "\\n")
assert os.stat(options["--temp-dir"]).st_mode & 0o777 == 0o700
assert len(options["--temp-dir"]) < 40
with (room / "joined").open("a") as file:
    file.write(options["--node-ip-address"] + "\\n")
if "--head" in options:
    if (room / "broken").exists():
        sys.exit(3)
    daemon = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(60)"
    subprocess.Popen([sys.executable, "-c", daemon, options["--port"]])
else:
    assert "--block" in options
    time.sleep(60)
"""
# What the shell asks the Python beside `ray` for
MODULE = """
import os, pathlib
def init(**options): assert os.environ["RAY_ADDRESS"]
def nodes(): return [{"Alive": True} for _ in (pathlib.Path(os.environ["ROOM"]) / "joined").read_text().split()]
"""
ENGINE = """
import os, pathlib, sys, time
room = pathlib.Path(os.environ["ROOM"])
(room / "served").write_text(repr((sys.argv[1:], os.environ["RAY_ADDRESS"], os.environ["VLLM_HOST_IP"])))
while not (room / "end").exists():
    time.sleep(0.02)
sys.exit(int((room / "end").read_text()))
"""


class Room:
    """A folder with the stand-ins, and the members that run in it."""

    def __init__(self, path: Path, port: int) -> None:
        self.path = path
        self.port = port
        self.programs = path / "it's $(touch X)"
        self.programs.mkdir()
        for name, text in (("ray", RAY), ("vllm", ENGINE)):
            self._program(name, f"#!{sys.executable}\n{text}")
        self._program("python3", f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} "$@"\n')
        (path / "ray.py").write_text(MODULE)
        self.running: list[subprocess.Popen[str]] = []

    def _program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def start(self, rank: int, generation: int = 1) -> subprocess.Popen[str]:
        entry = ModelEntry(
            model="m",
            tensor_parallel_size=8,
            distributed_executor="ray",
            extra_vllm_args=("a b", "$(touch X)"),
        )
        start = starts(entry, address="127.0.0.1", master="127.0.0.1", executable=f"{self.programs}/vllm")[
            rank
        ]
        words = [word.replace("\0port\0", "8000") for word in engine("vllm").command(start)]
        words[6] = str(self.port)
        process = subprocess.Popen(
            words,
            cwd=self.path,
            env={**os.environ, "ROOM": str(self.path), "AEGIS_START": f"m-0.{os.getpid()}.{generation}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def has(self, name: str) -> bool:
        return (self.path / name).exists() and bool((self.path / name).read_text())

    @property
    def folders(self) -> list[Path]:
        """The folders of Ray's that its words name and that are there."""
        words = [word for line in (self.path / "argv").read_text().splitlines() for word in eval(line)]
        named = [Path(word.partition("=")[2]) for word in words if word.startswith("--temp-dir=")]
        return [folder for folder in named if folder.exists()]

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout:
                process.stdout.close()
            for folder in self.folders:
                folder.rmdir()


def wait_until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path, free_port(8))  # the head's port turns with each start
    yield made
    made.close()


def test_the_engine_starts_when_all_members_have_joined_and_its_code_is_kept(room: Room) -> None:
    member = room.start(1)  # before there is anything to join
    head = room.start(0)
    wait_until(lambda: room.has("served"))
    argv, address, host = eval((room.path / "served").read_text())
    assert argv[:2] == ["serve", "/w"]
    assert argv[-2:] == ["a b", "$(touch X)"]
    assert (address, host) == (f"127.0.0.1:{room.port + 1}", "127.0.0.1")
    assert len((room.path / "joined").read_text().split()) == 2
    assert not list(room.path.rglob("X"))
    (room.path / "end").write_text("7")
    assert head.wait(PATIENCE) == 7
    member.terminate()
    assert member.wait(PATIENCE) != 0
    wait_until(lambda: not room.folders)


def test_the_engine_waits_for_the_last_member(room: Room) -> None:
    head = room.start(0)
    assert head.stdout is not None
    assert head.stdout.readline() == "aegis: 1 of 2 nodes are in the Ray cluster\n"
    assert not room.has("served")
    room.start(1)
    wait_until(lambda: room.has("served"))


def test_a_member_does_not_join_the_cluster_of_an_earlier_start(room: Room) -> None:
    room.start(0, generation=1)
    wait_until(lambda: room.has("joined"))
    early = room.start(1, generation=2)
    with pytest.raises(subprocess.TimeoutExpired):
        early.wait(1.0)
    assert len((room.path / "joined").read_text().split()) == 1
    room.start(0, generation=2)
    wait_until(lambda: len((room.path / "joined").read_text().split()) == 3)


def test_told_to_end_it_ends_its_parts_and_leaves_no_folder(room: Room) -> None:
    head, member = room.start(0), room.start(1)
    wait_until(lambda: room.has("served"))
    for process in (head, member):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)
    assert room.folders == []


def test_a_head_that_does_not_start_ends_with_its_code(room: Room) -> None:
    (room.path / "broken").write_text("yes")
    assert room.start(0).wait(PATIENCE) == 3
    assert not room.has("served")


def test_without_ray_that_is_said(room: Room) -> None:
    (room.programs / "ray").unlink()
    head = room.start(0)
    out, _ = head.communicate(timeout=PATIENCE)
    assert head.returncode == 127
    assert "aegis: cannot start: distributed_executor is ray, and beside the engine there is no" in out
    (room.path / "argv").write_text("")
