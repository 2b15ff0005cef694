"""From a laptop with a one-time code to servers on the nodes of a Slurm cluster."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.lab.conftest import QUICK, wait_until
from tests.lab.ssh.sshd import Sshd
from tests.lab.ssh.sshd import missing as no_sshd

from .fleet import CHAT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.schedulers.transport import Done

    from .lab import SlurmLab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]


class Laptop:
    """A user of the cluster on another machine. It is played by the login host, which reaches itself as others do."""

    def __init__(self, lab: SlurmLab, sshd: Sshd) -> None:
        self.lab = lab
        self.sshd = sshd
        self.work = sshd.folder / "laptop"
        self.work.mkdir()
        self.environ = {**sshd.askpass, "PATH": sshd.path, "HOME": str(self.work), "TMPDIR": str(self.work)}

    def run(self, *argv: object, **how: Any) -> Done:
        done = self.lab.run(*argv, environ=self.environ, cwd=self.work, **how)
        assert "Traceback" not in done.err, done.err
        return done

    def aegis(self, *args: object, **how: Any) -> Done:
        return self.run(
            sys.executable, "-P", "-m", "aegis", *args, "--remote", "alice@cluster", timeout=120, **how
        )


@pytest.fixture
def laptop(slurm: SlurmLab) -> Iterator[Laptop]:
    if reason := no_sshd():
        pytest.skip(reason)
    home = slurm.path / "home" / "alice"
    profile = home / ".bash_profile"
    profile.write_text(
        f"export PATH={Path(sys.executable).parent}:$PATH AEGIS_AGENT_POLICY='{json.dumps(QUICK)}'\n"
    )
    folder = Path(tempfile.mkdtemp(prefix="aegis-sshd-"))
    sshd = Sshd(folder, home=home, enter=slurm.enter("login"), host="login")
    try:
        sshd.start()
        made = Laptop(slurm, sshd)
        yield made
        wait_until(lambda: not list(made.work.glob("aegis-ssh-*")), "no socket stays")
    finally:
        sshd.stop()
        profile.unlink()
        shutil.rmtree(folder)


def test_from_a_laptop_to_servers_on_two_nodes(laptop: Laptop, slurm: SlurmLab) -> None:
    deployment = {
        "model": "rehearsal-1B",
        "engine": "sim",
        "instances": 2,
        "tensor_parallel_size": 4,
        "gpus_per_node": 4,
        "platform": "generic-slurm",
        "queue": "all",
        "mem_per_node": "1G",
        "walltime": "00:10:00",
        "log_dir": "logs",
    }
    (laptop.work / "deployment.yaml").write_text(yaml.safe_dump(deployment))
    done = laptop.aegis("submit", "--config", "deployment.yaml", "--wait")
    endpoints = done.out.split()
    assert len(endpoints) == 2
    assert {each.rpartition(":")[2] for each in endpoints} == {"8000"}
    assert (laptop.work / "aegis_endpoints.txt").read_text().split() == endpoints
    assert laptop.sshd.logins == len(laptop.sshd.prompts) == 1

    handle = done.err.partition("submitted ")[2].split()[0]
    assert json.loads(laptop.aegis("status", handle, "--json").out)["model_status"] == "READY"
    printed = laptop.aegis("tunnel", handle, "rehearsal-1B-1", "--print").out
    assert printed == f"ssh -N -L 8000:{endpoints[1]} alice@cluster\n"

    # The tunnel, a request through it, and Ctrl-C, in one shell over there.
    script = """"$@" >url 2>said & tunnel=$!
for _ in {1..200}; do [ -s url ] && break; sleep 0.1; done
curl -sSf -H 'Content-Type: application/json' -d "$CHAT" "$(<url)/chat/completions"
kill "$tunnel"; wait "$tunnel\""""
    laptop.environ["CHAT"] = json.dumps(CHAT)
    words = [sys.executable, "-P", "-m", "aegis", "tunnel", handle, "--remote", "alice@cluster"]
    assert json.loads(laptop.run("bash", "-c", script, "x", *words).out)["choices"]

    laptop.aegis("shutdown", handle)
    assert slurm.run("squeue", "-h").out == ""
    assert laptop.sshd.logins == 5
