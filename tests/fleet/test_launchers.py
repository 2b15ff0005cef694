"""How agents are started on the nodes: the words of the launchers, and what they leave out of the environment."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis.fleet.launchers import ENDED_BY_ITSELF, Each, Together, agent_command, agents_for
from aegis.fleet.nodes import ANY, Host
from aegis.runs import RunDir
from aegis.spec.platform import Platform
from aegis.step import MOST_APART

if TYPE_CHECKING:
    from collections.abc import Callable

HOSTS = [Host(name, f"{name}.hsn", ANY) for name in ("n1.site", "n2.site")]
PATIENCE = 20.0
# Writes what it was given beside itself; the copy appears whole
SHOW = """#!/bin/bash
printf '%s\\0' "$@" >"$0.$$" && mv "$0.$$" "$0.argv"
env -0 >"$0.$$" && mv "$0.$$" "$0.environ"
exit "${CODE:-0}"
"""


# Refuses two nodes, and n2 alone; on n1 it goes on until it is asked to end, as srun passes that on
REFUSES = """#!/bin/bash
case " $* " in
  *" --nodes=2 "*) echo "srun: error: Application launch failed: Communication failure" >&2; exit 1 ;;
  *" --nodelist=n2.site "*) echo "srun: error: Unable to create step for job 1" >&2; exit 1 ;;
esac
trap 'touch "$0.asked"; exit 0' USR1
touch "$0.began"
while :; do sleep 0.05; done
"""


def reached(node: str, command: list[str]) -> list[str]:
    return ["ssh", node, *command]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.make(tmp_path / "logs" / "it's m.17 $(touch X)")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """srun, mpiexec and ssh that tell what they were given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("srun", "mpiexec", "ssh"):
        (folder / name).write_text(SHOW)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def wait_until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def given(programs: Path, name: str) -> list[str]:
    file = programs / f"{name}.argv"
    wait_until(file.exists)
    return file.read_text().split("\0")[:-1]


def together(run: RunDir, launcher: Any, **environ: str) -> Together:
    platform = Platform(name="p", launcher=launcher, launcher_args=("--site-flag",))
    made = agents_for(platform, run, HOSTS, sys.executable, {**os.environ, **environ})
    assert isinstance(made, Together)
    return made


def test_the_step_of_srun_has_all_of_the_job_and_outlives_a_node(run: RunDir, programs: Path) -> None:
    agents = together(run, "srun")
    agents.start()
    words = given(programs, "srun")
    command = agent_command(run, sys.executable, "")
    assert words[-len(command) :] == command
    assert words[-len(command) - 1] == "--site-flag"  # after ours: the site's word is the last
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", f"--nodelist={run.path}/hosts"} <= set(words)
    assert {"--mem=0", "--cpu-bind=none", "--overlap", "--export=ALL"} <= set(words)
    assert {"--no-kill", "--kill-on-bad-exit=0", "--wait=0"} <= set(words)
    assert not [
        word for word in words if word.startswith(("--het-group", "--cpus-per-task", "--gres", "--gpus"))
    ]
    assert (run.path / "hosts").read_text() == "n1.site\nn2.site\n"
    wait_until(lambda: not agents.running)
    agents.stop()


@pytest.mark.parametrize("group", ["0", "1"])
def test_a_component_of_a_het_job_starts_its_own_step(group: str, run: RunDir) -> None:
    assert f"--het-group={group}" in together(run, "srun", AEGIS_HET_GROUP=group).command()


def test_what_would_make_the_step_smaller_than_the_job_stays_out(run: RunDir, programs: Path) -> None:
    out = {
        "SLURM_CPUS_PER_TASK": "1",
        "SRUN_CPUS_PER_TASK": "1",
        "SLURM_EXACT": "1",
        "SLURM_TRES_PER_TASK": "cpu:1",
    }
    agents = together(run, "srun", SLURM_JOB_ID="17", **out)
    agents.start()
    wait_until((programs / "srun.environ").exists)
    environ = dict(each.partition("=")[::2] for each in (programs / "srun.environ").read_text().split("\0"))
    assert not set(out) & set(environ)
    assert environ["SLURM_JOB_ID"] == "17"
    agents.stop()


def test_mpiexec_starts_one_on_each_node(run: RunDir, programs: Path) -> None:
    agents = together(run, "mpiexec")
    agents.start()
    words = given(programs, "mpiexec")
    assert words[:7] == ["-n", "2", "-ppn", "1", "--hostfile", f"{run.path}/hosts", "--site-flag"]
    agents.stop()


@pytest.mark.parametrize("nodes", [2, 600])
def test_with_a_node_to_spare_each_has_an_mpiexec_of_its_own(run: RunDir, programs: Path, nodes: int) -> None:
    platform = Platform(name="p", launcher="mpiexec", launcher_args=("--site-flag",))
    hosts = [Host(f"n{number}.site", f"n{number}.hsn", ANY) for number in range(nodes)]
    agents = agents_for(platform, run, hosts, sys.executable, {**os.environ, "CODE": "9"}, spare=True)
    agents.start()
    words = given(programs, "mpiexec")
    if nodes > MOST_APART:  # the head has not that many processes
        assert words[:2] == ["-n", "600"]
    else:
        node = words[words.index("--node") + 1]
        assert words[:5] == ["-n", "1", "-ppn", "1", "--hostfile"]
        assert words[6] == "--site-flag"
        assert Path(words[5]).read_text() == f"{node}\n"
        assert len(list(run.path.glob("hosts.*"))) == 2
        wait_until(lambda: agents.check() is not None and len(agents.given_up) == 2)
        assert not agents.running
    agents.stop()


def test_who_is_started_after_a_change_reads_the_orders_of_the_run_directory(run: RunDir) -> None:
    before = agent_command(run, "python", "n1", "/local/folder")
    after = agent_command(run, "python", "n1", "/local/folder", outdated=True)
    assert before[2:4] == ["/local/folder/agent.pyz", "/local/folder/fleet.jsonl"]
    assert after[2:4] == ["/local/folder/agent.pyz", str(run.fleet)]
    assert after[4:] == before[4:]


def test_through_ssh_each_agent_is_one_quoted_command(run: RunDir, programs: Path, tmp_path: Path) -> None:
    platform = Platform(name="p", launcher="ssh", launcher_args=("-p", "2222"))
    agents = agents_for(platform, run, HOSTS[:1], sys.executable, {})
    agents.start()
    words = given(programs, "ssh")
    assert words[0] == "-oBatchMode=yes"
    assert words[-6:-1] == ["-p", "2222", "-tt", "--", "n1.site"]
    assert shlex.split(words[-1]) == agent_command(run, sys.executable, "n1.site")
    agents.stop()
    assert not list(tmp_path.rglob("X"))


@pytest.mark.parametrize("code", ENDED_BY_ITSELF)
def test_an_agent_that_ended_by_itself_is_not_started_again(
    code: int, run: RunDir, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODE", str(code))
    agents = Each(run, HOSTS[:1], sys.executable, reached)
    agents.start()
    wait_until(lambda: not agents.running)
    assert agents.check() == []


def test_an_agent_that_dies_is_started_again_a_few_times(
    run: RunDir, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODE", "255")  # what ssh says of a lost connection
    agents = Each(run, HOSTS[:1], sys.executable, reached)
    agents.start()
    said: list[str] = []

    def over() -> bool:
        assert agents.running or said
        said.extend(agents.check())
        return not agents.running

    wait_until(over)
    assert said == [
        *["the agent of node n1.site ended (code 255): started again"] * 3,
        "the agent of node n1.site ended 4 times (code 255): given up",
    ]
    assert agents.check() == []


def test_a_node_that_srun_cannot_reach_costs_its_own_agent_alone(run: RunDir, programs: Path) -> None:
    (programs / "srun").write_text(REFUSES)
    agents = together(run, "srun")
    agents.start()
    said: list[str] = []

    def apart() -> bool:
        assert agents.running
        said.extend(agents.check())
        return (programs / "srun.began").exists()

    wait_until(apart)
    assert said == [
        "srun cannot start the agent of some node, and so ended all: each node gets an srun of its own"
    ]
    assert agents.running
    agents.stop()
    assert (programs / "srun.asked").exists()
    assert agents.apart
    assert all(each.poll() is not None for each in agents.apart.processes.values())


def test_what_an_earlier_run_was_refused_counts_no_more(run: RunDir, programs: Path) -> None:
    run.nodes.mkdir(parents=True, exist_ok=True)
    (run.nodes / "launcher.log").write_text("srun: error: Application launch failed: of another day\n")
    agents = together(run, "srun")
    agents.start()
    wait_until(lambda: not agents.running)
    assert agents.check() == []
