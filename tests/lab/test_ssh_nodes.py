"""Agents that are started through a real ssh: two nodes of a PBS job, both this machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.ports import free_port

from .conftest import Process, chat, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Lab

SSHD = Path("/usr/sbin/sshd")
NODES = ("127.0.0.2", "127.0.0.3")
OWN = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c")
START = f'mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec {SSHD} -D -f "$0"'


def missing() -> str:
    """Return what keeps an sshd from being started here, if anything does."""
    if os.geteuid() or not SSHD.exists() or not shutil.which("ssh-keygen"):
        return "needs root, openssh-server and openssh-client"
    if Path("/etc/shadow").read_text().startswith("root:!"):
        return "root is locked out"
    return (
        ""
        if not subprocess.run([*OWN, "true"], capture_output=True, check=False).returncode
        else "no namespaces"
    )


pytestmark = [pytest.mark.lab, pytest.mark.timeout(90), pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture
def ssh(lab: Lab) -> Iterator[Path]:
    """The configuration of an ssh that reaches both nodes."""
    folder, port = lab.path, free_port()
    for name in ("host", "own"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.2\nListenAddress 127.0.0.3\nHostKey {folder}/host\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/own.pub\nStrictModes no\nPermitRootLogin yes\nPidFile none\n"
    )
    key = (folder / "host.pub").read_text().rsplit(" ", 1)[0]
    (folder / "known").write_text(f"* {key}\n")
    config = folder / "ssh_config"
    config.write_text(
        f"Port {port}\nIdentityFile {folder}/own\nUserKnownHostsFile {folder}/known\nIdentitiesOnly yes\n"
    )
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([*OWN, START, str(folder / "sshd_config")], stderr=log)
    ready = ["ssh", "-F", str(config), "-oBatchMode=yes", NODES[0], "true"]
    wait_until(
        lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0,
        "sshd lets us in",
    )
    yield config
    process.kill()  # of `unshare`, which takes all the others with it
    process.wait()


def launch(lab: Lab, ssh: Path, **more: str) -> subprocess.Popen[str]:
    nodes = lab.path / "nodes"
    nodes.write_text("".join(f"{node}\n" * 4 for node in NODES))
    lab.environ |= {"PBS_NODEFILE": str(nodes), "PBS_JOBID": "4711.pbs"}
    profile = {
        "name": "site",
        "launcher": "ssh",
        "launcher_args": ["-F", str(ssh)],
        "node": {"devices": 4, "mask_variable": "CUDA_VISIBLE_DEVICES"},
    }
    (lab.work / "site.yaml").write_text(yaml.safe_dump(profile))
    return lab.start(
        "launch",
        "--config",
        lab.deployment(platform="site.yaml", instances=2, tensor_parallel_size=4, **more),
    )


def agents(lab: Lab, node: str) -> list[Process]:
    """The guard and the worker of a node; its ssh has the same words, in one of its own."""
    words = f"--node {node}"
    return [
        each for each in lab.processes() if words in each.command and "ssh" not in each.command.split()[0]
    ]


def test_agents_through_ssh_serve_are_replaced_and_end_with_the_launch(lab: Lab, ssh: Path) -> None:
    process = launch(lab, ssh)
    endpoints = wait_until(lambda: lab.output(process).out).split()
    assert [endpoint.rpartition(":")[0] for endpoint in endpoints] == list(NODES)
    for endpoint in endpoints:
        assert chat(endpoint, "rehearsal-1B")["choices"]
    (guard,) = (each for each in agents(lab, NODES[1]) if "--worker" not in each.command)
    guard.kill()  # its worker has yet to end the server: whoever comes next waits for that, and finds the port free
    wait_until(lambda: f"the agent of node {NODES[1]} ended" in lab.output(process).err)
    wait_until(lambda: len(re.findall(r"rehearsal-1B-1 healthy", lab.output(process).err)) == 2)
    job = lab.job("pbs://4711.pbs")
    wait_until(lambda: job.endpoints == endpoints, "the endpoints file, written after that line, names both")
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0, lab.output(process).err
    wait_until(
        lambda: not [each for each in lab.processes() if " sim " in each.command], "no server is left", 15
    )


def test_a_killed_head_leaves_nothing_on_the_nodes(lab: Lab, ssh: Path) -> None:
    process = launch(lab, ssh)
    wait_until(lambda: lab.output(process).out)
    process.kill()
    wait_until(
        lambda: not [each for each in lab.processes() if " sim " in each.command or "agent" in each.command],
        "every agent and server is gone",
        30,
    )


def test_the_programs_of_a_map_run_next_to_their_servers(lab: Lab, ssh: Path) -> None:
    (lab.work / "in").mkdir()
    for number in range(8):
        (lab.work / "in" / f"{number}.txt").write_text("x" * number)
    script = "sh -c 'echo $1 $SSH_CONNECTION; sleep 0.2' - {host} {input}"
    process = launch(lab, ssh, map=f"in --output out --script {shlex.quote(script)}")
    assert process.wait(60) == 0, lab.output(process).err
    said = [(lab.work / "out" / f"{number}.txt.out").read_text().split() for number in range(8)]
    assert {host for host, *_ in said} == set(NODES)
    # ssh's own word for where a worker runs: the third is the address that it was reached by
    assert all(connection[2] == host for host, *connection in said)
