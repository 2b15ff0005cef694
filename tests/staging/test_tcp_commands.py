"""The driver's side of the stager: command lines, the order of the chain, events, the archive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aegis.staging.archive import stager_archive
from aegis.staging.events import Done, Listening, NodeResult, Progress, read_event
from aegis.staging.tcp import Launcher, Stager, node_commands, order

STAGER = Stager(archive=Path("/run/stager.pyz"), secret_file=Path("/run/a secret"), interface="hsn0")
PROGRAM = ["python3", "-I", "/run/stager.pyz"]
RECEIVE = [
    *PROGRAM,
    "receive",
    "--secret-file",
    "/run/a secret",
    "--interface",
    "hsn0",
    "--head",
    "10.0.0.1:5",
]
NODES = Path("/run/nodes")


def test_the_head_is_told_the_list_the_nodes_and_the_task() -> None:
    stage = STAGER.head(Path("/run/list"), NODES)
    assert stage[3:] == ["head", *RECEIVE[4:8], "/run/list", "--nodes", "@/run/nodes", "--hear"]
    assert STAGER.head(Path("/run/list"), NODES, "verify") == [*stage, "--verify"]


@pytest.mark.parametrize(
    ("launcher", "commands"),
    [
        (Launcher(kind="local"), [[*RECEIVE, "--node", "a"], [*RECEIVE, "--node", "b"]]),
        (
            Launcher(kind="mpiexec", words=("--no-vni",)),
            [["mpiexec", "-n", "2", "-ppn", "1", "--hostfile", "/run/nodes", "--no-vni", *RECEIVE]],
        ),
        (Launcher(kind="pbsdsh"), [["pbsdsh", "-u", "--", *RECEIVE]]),
    ],
)
def test_every_launcher_starts_one_on_every_node(launcher: Launcher, commands: list[list[str]]) -> None:
    assert node_commands(STAGER, launcher, ["a", "b"], "10.0.0.1:5", NODES) == commands


def test_ssh_quotes_what_the_other_shell_reads() -> None:
    (command,) = node_commands(STAGER, Launcher(kind="ssh", words=("-p", "2222")), ["a"], "10.0.0.1:5", NODES)
    assert command[0] == "ssh"
    assert command[-5:-1] == ["-p", "2222", "--", "a"]
    assert "--secret-file '/run/a secret'" in command[-1]
    assert command[-1].endswith("--node a")


def test_srun_takes_all_of_the_node_beside_other_steps() -> None:
    launcher = Launcher(kind="srun", words=("--network=no_vni",), het_group="1")
    (command,) = node_commands(STAGER, launcher, ["a", "b"], "10.0.0.1:5", NODES)
    assert command[:5] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--nodelist=/run/nodes"]
    assert {"--overlap", "--no-kill", "--het-group=1"} <= set(command)
    assert command[-len(RECEIVE) - 1 :] == ["--network=no_vni", *RECEIVE]


def test_the_chain_goes_by_number_from_the_head_on() -> None:
    hosts = ["nid010", "nid9", "nid002", "x1c10", "x1c9", "nid002"]
    assert order(hosts) == ("nid002", "nid9", "nid010", "x1c9", "x1c10")
    assert order(hosts, "nid010")[0] == "nid010"


def test_events_are_read_and_what_a_launcher_prints_is_not() -> None:
    assert read_event('{"event":"listening","address":"","port":7}') == Listening(address="", port=7)
    progress = b'{"event":"progress","item":1,"bytes":2,"total":3,"nodes_done":4,"nodes":5,"seconds":6.5}'
    assert read_event(progress) == Progress(item=1, bytes=2, total=3, nodes_done=4, nodes=5, seconds=6.5)
    result = '{"event":"node","item":0,"host":"a","ok":false,"skipped":false,"bytes":0,"error":"no"}'
    assert read_event(result) == NodeResult(item=0, host="a", ok=False, error="no")
    assert read_event('{"event":"done","seconds":1,"bytes_read":2,"rate":2}') == Done(
        seconds=1, bytes_read=2, rate=2
    )
    for line in ("", "srun: job 7 queued", "{}", '{"event":"other"}', b"\xff"):
        assert read_event(line) is None


def test_the_archive_is_the_same_for_the_same_sources_and_runs_anywhere(tmp_path: Path) -> None:
    assert stager_archive() == stager_archive()
    archive = tmp_path / "a b'\n$(x)" / "stager.pyz"
    archive.parent.mkdir()
    archive.write_bytes(stager_archive())
    told = subprocess.run(
        [sys.executable, "-I", "-S", str(archive), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert "receive" in told.stdout
