"""A launch inside an allocation of two nodes: the site's launcher starts the agents, and each finds itself by its host name.

The launcher is a stand-in: for each node it opens a namespace with that node's host name and runs the command there, and
like the real ones it ends its tasks when it is told to end. The nodes are named by loopback addresses, so that they resolve.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from .conftest import chat, wait_until

if TYPE_CHECKING:
    from .conftest import Lab


def can_rename_hosts() -> bool:
    """Tell whether this user may have a host name of its own."""
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode
    )


pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(90),
    pytest.mark.skipif(not can_rename_hosts(), reason="no right to open a UTS namespace"),
]
NODES = ("127.0.0.2", "127.0.0.3")
# What stands before the command is the launcher's own: it ends with -I's Python, the first absolute path.
LAUNCHER = """#!/bin/bash
printf '%s\\n' "$@" >"$0.argv"
while [ "${1#/}" = "$1" ] || [ -f "$1" ] && [ ! -x "$1" ]; do shift; done
trap 'kill $(jobs -p); wait' TERM
trap 'kill -USR1 $(jobs -p); wait' USR1
for node in 127.0.0.2 127.0.0.3; do
  unshare --uts bash -c 'hostname "$0"; exec "$@"' "$node" "$@" &
done
wait
"""


@pytest.fixture(params=["srun", "mpiexec"])
def launcher(request: pytest.FixtureRequest, lab: Lab) -> str:
    """Put the stand-in on PATH, with the variables that the scheduler of such a launcher sets in a job."""
    name: str = request.param
    programs = lab.path / "bin"
    programs.mkdir()
    (programs / name).write_text(LAUNCHER)
    (programs / name).chmod(0o755)
    lab.environ["PATH"] = f"{programs}:{lab.environ['PATH']}"
    if name == "srun":
        lab.environ |= {"SLURM_JOB_NODELIST": "127.0.0.[2-3]", "SLURM_JOB_ID": "4711"}
    else:
        nodes = lab.path / "nodes"
        nodes.write_text("".join(f"{node}\n" * 4 for node in NODES))
        lab.environ |= {"PBS_NODEFILE": str(nodes), "PBS_JOBID": "4711.pbs"}
    return name


def launch(lab: Lab, launcher: str, **keys: Any) -> subprocess.Popen[str]:
    profile = {
        "name": "site",
        "launcher": launcher,
        "launcher_args": ["--site-flag"],
        "node": {"devices": 4, "mask_variable": "CUDA_VISIBLE_DEVICES"},
    }
    (lab.work / "site.yaml").write_text(yaml.safe_dump(profile))
    return lab.start("launch", "--config", lab.deployment(platform="site.yaml", **keys))


def test_agents_on_all_nodes(lab: Lab, launcher: str) -> None:
    process = launch(lab, launcher, instances=2, tensor_parallel_size=4)
    endpoints = wait_until(lambda: lab.output(process).out).split()
    assert [endpoint.rpartition(":")[0] for endpoint in endpoints] == list(NODES)
    for endpoint in endpoints:
        assert chat(endpoint, "rehearsal-1B")["choices"]
    words = (lab.path / "bin" / f"{launcher}.argv").read_text().splitlines()
    assert "--site-flag" in words
    if launcher == "srun":
        assert {"--nodes=2", "--ntasks-per-node=1", "--no-kill", "--mem=0"} <= set(words)
    handle = {"srun": "slurm://4711", "mpiexec": "pbs://4711.pbs"}[launcher]
    job = lab.job(handle)
    (view,) = [job.status()]
    assert (view["model_status"], view["nodes"], view["healthy"]) == ("READY", 2, 2)
    masks = {
        entry
        for each in lab.processes()
        if " sim " in each.command
        for entry in _environ(each.pid)
        if entry.startswith("CUDA_VISIBLE_DEVICES=")
    }
    assert masks == {"CUDA_VISIBLE_DEVICES=0,1,2,3"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, lab.output(process).err
    wait_until(lab.is_empty, "every process is gone", 15)


def test_an_instance_over_both_nodes_dies_with_the_head(lab: Lab, launcher: str) -> None:
    process = launch(lab, launcher, tensor_parallel_size=8)
    (endpoint,) = wait_until(lambda: lab.output(process).out).split()
    assert chat(endpoint, "rehearsal-1B")["choices"]
    process.kill()
    wait_until(lab.is_empty, "every process is gone", 30)


def test_the_programs_of_a_map_run_next_to_their_servers(lab: Lab, launcher: str) -> None:
    (lab.work / "in").mkdir()
    for number in range(8):
        (lab.work / "in" / f"{number}.txt").write_text("x" * number)
    script = "sh -c 'echo $1 $(hostname); sleep 0.2' - {host} {input}"
    words = f"in --output out --script {shlex.quote(script)}"
    process = launch(lab, launcher, instances=2, tensor_parallel_size=4, map=words)
    assert process.wait(60) == 0, lab.output(process).err
    said = [(lab.work / "out" / f"{number}.txt.out").read_text().split() for number in range(8)]
    assert all(host == node for host, node in said)
    assert {host for host, _ in said} == set(NODES)
    wait_until(lab.is_empty, "every process is gone", 15)


def test_outside_of_an_allocation_it_says_so(lab: Lab, launcher: str) -> None:
    for name in ("SLURM_JOB_NODELIST", "PBS_NODEFILE"):
        lab.environ.pop(name, None)
    process = launch(lab, launcher)
    assert process.wait(20) == 3
    assert "this is no allocation" in lab.output(process).err


def _environ(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - /proc
            return [os.fsdecode(entry) for entry in file.read().split(b"\0")]
    except OSError:
        return []


def test_a_launcher_that_refuses_is_quoted(lab: Lab, launcher: str) -> None:
    program = lab.path / "bin" / launcher
    program.write_text("#!/bin/bash\necho 'error: unable to create step: nodes are busy' >&2\nexit 1\n")
    process = launch(lab, launcher)
    assert process.wait(60) == 1
    said = "no agent is left: error: unable to create step: nodes are busy (launcher.log)"
    assert f"error: {said}\n" in lab.output(process).err
    assert (
        lab.job(f"{'slurm' if launcher == 'srun' else 'pbs'}://4711").status()["reason"].startswith(said[:60])
    )
