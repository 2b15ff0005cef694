"""Commands of nodes: started here, by a stand-in for srun, late, killed and ended with whoever started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis.bench.started import Ended, Kind, Order, Run, Steps, Way
from aegis.fleet.services import tied
from tests.engines.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

SH = Kind(["sh", "-c"], {"KIND": "1"})
# Runs the words after its own on every node of its list; SIGUSR1 goes to what it runs, as with the real one
SRUN = """#!{python}
import json, os, signal, subprocess, sys
words = sys.argv[1:]
with open({calls!r}, "a") as calls:
    calls.write(json.dumps(words) + "\\n")
own = [word for word in words[: words.index({python!r})]]
nodes = next(word.partition("=")[2] for word in own if word.startswith("--nodelist="))
nodes = open(nodes).read().split() if os.path.isfile(nodes) else [nodes]
if {refused!r} in nodes:
    print("srun: error: Unable to create step for job 1: Nodes required are DOWN", file=sys.stderr)
    sys.exit(1)
children = [
    subprocess.Popen(words[len(own):], env=dict(os.environ, SLURMD_NODENAME=node)) for node in nodes
]
signal.signal(signal.SIGUSR1, lambda *_: [child.send_signal(signal.SIGUSR1) for child in children])
signal.signal(signal.SIGTERM, lambda *_: [child.kill() for child in children])
sys.exit(max(child.wait() for child in children))
"""
HOSTILE = "a 'b' \"c\" $(touch X); \n d"


def stand_in(folder: Path, refused: str = "") -> Path:
    program = folder / "srun"
    program.write_text(SRUN.format(python=sys.executable, calls=str(folder / "calls"), refused=refused))
    program.chmod(0o755)
    return folder / "calls"


def way(launcher: Any = "local", folder: Path | None = None) -> Way:
    environ = {"PATH": f"{folder}:{os.environ['PATH']}" if folder else os.environ["PATH"]}
    return Way(launcher=launcher, python=sys.executable, environ=environ)


def order(*commands: str, node: str = "", at_once: int = 8, seconds: float = 60.0, first: int = 0) -> Order:
    runs = [Run(number, 0, [command, "sh"]) for number, command in enumerate(commands, first)]
    return Order(node=node, runs=runs, at_once=at_once, seconds=seconds)


def carry_out(
    folder: Path, *orders: Order, secrets: dict[str, str] | None = None, how: Way | None = None
) -> dict[int, Ended]:
    steps = Steps(folder, [SH], orders, secrets or {}, how or way())
    return steps.run(lambda _: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (made := tmp_path / "it's shared $(x)").mkdir()
    return made


def gone(mark: str) -> Callable[[], bool]:
    def look() -> bool:
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark.encode() in (entry / "cmdline").read_bytes():
                    return False
            except OSError:
                continue
        return True

    return look


def test_every_command_has_an_end_of_its_own(folder: Path) -> None:
    ended = carry_out(folder, order("exit 0", "echo one >&2; echo ValueError: two >&2; exit 3", "kill -9 $$"))
    assert ended[0] == Ended(0)
    assert ended[1] == Ended(3, reason="ValueError: two")
    assert ended[2].code == -9


def test_words_and_secrets_arrive_as_they_are_and_no_argument_shows_them(folder: Path) -> None:
    script = 'printf %s "$1$SECRET$KIND$OWN" > "$2"; tr "\\\\0" " " < /proc/$PPID/cmdline > "$2.parent"'
    out = str(folder / "out put")
    run = Run(0, 0, [script, "sh", HOSTILE, out], {"OWN": "o"})
    ended = carry_out(
        folder, Order(node="", runs=[run], at_once=1, seconds=60.0), secrets={"SECRET": "very secret"}
    )
    assert ended == {0: Ended(0)}
    assert Path(out).read_text() == f"{HOSTILE}very secret1o"
    assert "very secret" not in Path(f"{out}.parent").read_text()
    assert (folder / "secrets").stat().st_mode & 0o777 == 0o600


def test_no_more_at_once_than_was_said(folder: Path) -> None:
    count = f'cd "{folder}"; touch r.$1; ls r.* | wc -l >> most; sleep 0.1; rm r.$1'
    runs = [Run(number, 0, [count.replace("$(x)", "\\$(x)"), "sh", str(number)]) for number in range(6)]
    ended = carry_out(folder, Order(node="", runs=runs, at_once=2, seconds=60.0))
    assert all(each.code == 0 for each in ended.values())
    most = [int(line) for line in (folder / "most").read_text().split()]
    assert len(most) == 6
    assert max(most) == 2


def test_what_takes_too_long_is_ended_with_its_children(folder: Path) -> None:
    began = time.monotonic()
    ended = carry_out(folder, order("sleep 987.1 & sleep 987.2", "exit 0", seconds=0.3))
    assert ended[0].late
    assert ended[1] == Ended(0)
    assert time.monotonic() - began < 10
    assert gone("987.")()


def test_a_program_that_is_not_there(folder: Path) -> None:
    steps = Steps(folder, [Kind(["/no/such"], {})], [order("")], {}, way())
    assert steps.run(lambda _: None) == {0: Ended(127, reason="/no/such: No such file or directory")}


def test_one_step_starts_all_nodes_and_each_runs_its_own(folder: Path, tmp_path: Path) -> None:
    calls = stand_in(tmp_path)
    orders = [
        order(
            f'echo $SLURMD_NODENAME > "$0.{number}"',
            f"exit {number}",
            node=f"n{number}.site",
            first=2 * number,
        )
        for number in range(1, 4)
    ]
    for each in orders:
        each.runs[0].words[1] = str(folder / "seen")
    ended = carry_out(folder, *orders, how=way("srun", tmp_path))
    assert {number: each.code for number, each in ended.items()} == {2: 0, 3: 1, 4: 0, 5: 2, 6: 0, 7: 3}
    assert [(folder / f"seen.{number}").read_text() for number in (1, 2, 3)] == [
        f"n{number}.site\n" for number in (1, 2, 3)
    ]
    (call,) = map(json.loads, calls.read_text().splitlines())
    assert "--nodes=3" in call
    assert sum(map(len, call)) < 1000, "names and commands are in files"


def test_a_node_that_srun_refuses_costs_its_own_commands_alone(folder: Path, tmp_path: Path) -> None:
    calls = stand_in(tmp_path, refused="n2")
    orders = [order("exit 0", node=f"n{number}", first=number) for number in (1, 2, 3)]
    ended = carry_out(folder, *orders, how=way("srun", tmp_path))
    assert (ended[1], ended[3]) == (Ended(0), Ended(0))
    assert ended[2].code is None
    assert ended[2].reason.startswith("srun ended with 1: srun: error: Unable to create step")
    assert len(calls.read_text().splitlines()) == 4


def test_nodes_and_this_machine_in_one_run(folder: Path, tmp_path: Path) -> None:
    stand_in(tmp_path)
    ended = carry_out(folder, order("exit 4"), order("exit 5", node="n1", first=1), how=way("srun", tmp_path))
    assert {number: each.code for number, each in ended.items()} == {0: 4, 1: 5}


def test_no_launcher_there(folder: Path, tmp_path: Path) -> None:
    how = Way(launcher="srun", python=sys.executable, environ={"PATH": str(tmp_path)}, tied=tied)
    ended = carry_out(folder, order("exit 0", node="n1"), how=how)
    said = "srun ended with 127: aegis: cannot run srun: No such file or directory"
    assert ended == {0: Ended(None, reason=said)}


@pytest.mark.parametrize("launcher", ["local", "srun"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_all_ends_with_whoever_started_it(folder: Path, tmp_path: Path, launcher: str, number: int) -> None:
    stand_in(tmp_path)
    seconds = f"9{time.monotonic_ns() % 10**9}"  # of sleep: by it the process is found
    program = f"""
import json, os, sys
from pathlib import Path
from aegis.bench.started import Kind, Order, Run, Steps, Way
from aegis.fleet.services import tied
way = Way(launcher={launcher!r}, python=sys.executable, environ=dict(os.environ), tied=tied)
runs = [Run(0, 0, ["touch began.$$; exec sleep {seconds}"])]
node = "" if way.launcher == "local" else "n1"
Steps(Path(sys.argv[1]), [Kind(["sh", "-c"], {{}})], [Order(node=node, runs=runs, at_once=1, seconds=600.0)], {{}}, way).run(print)
"""
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], env=environ, cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: list(tmp_path.glob("began.*")))
    process.send_signal(number)
    process.wait(20)
    wait_until(gone(seconds))
