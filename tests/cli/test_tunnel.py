"""`aegis tunnel` on the login node, and what it refuses."""

from __future__ import annotations

import getpass
import json
import os
import socket
from typing import TYPE_CHECKING

import pytest

from aegis.processes import start_of
from aegis.runs import Manifest, RunDir, register

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job of this machine whose servers stand in its endpoints file."""
    monkeypatch.setenv("AEGIS_STATE_DIR", str(tmp_path / "state"))
    run = RunDir.create(str(tmp_path), "m", "abc")
    endpoints = tmp_path / "endpoints.txt"
    endpoints.write_text("127.0.0.1:8000\n10.0.0.9:8001\n")
    manifest = Manifest(
        job="local://abc",
        name="m",
        models=["m"],
        run_dir=str(run.path),
        state="LAUNCHING",
        host=os.uname().nodename,
        pid=os.getpid(),
        pid_started=start_of(os.getpid()),
        endpoints_file=str(endpoints),
    )
    run.write_manifest(manifest)
    register(manifest.job, run, os.environ)
    return manifest.job


def test_on_the_login_node_the_command_is_printed(aegis: Callable[..., Outcome], job: str) -> None:
    login = f"{getpass.getuser()}@{socket.getfqdn()}"
    outcome = aegis("tunnel", job)
    assert (outcome.code, outcome.out) == (0, f"ssh -N -L 8000:127.0.0.1:8000 {login}\n")
    assert "http://127.0.0.1:8000/v1" in outcome.err
    outcome = aegis("tunnel", "abc", "10.0.0.9:8001", "--port", "9000")
    assert outcome.out == f"ssh -N -L 9000:10.0.0.9:8001 {login}\n"
    assert f"ssh -N -J {login} -L 9000:localhost:8001" in outcome.err


def test_a_server_that_only_its_node_reaches(aegis: Callable[..., Outcome], job: str, tmp_path: Path) -> None:
    file = tmp_path / "m" / "m.abc" / "m.abc.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "host": "node7"}))
    out = aegis("tunnel", job).out
    user = getpass.getuser()
    assert out == f"ssh -N -J {user}@{socket.getfqdn()} -L 8000:localhost:8000 {user}@node7\n"


def test_no_such_job_and_no_such_server(aegis: Callable[..., Outcome], job: str) -> None:
    assert aegis("tunnel", "abd").code == 4
    outcome = aegis("tunnel", job, "127.0.0.1:800")
    assert outcome.code == 4
    assert "did you mean `127.0.0.1:8000`?" in outcome.err


@pytest.mark.parametrize("target", ["-oProxyCommand=touch X", "a b", "user@host;touch X", ""])
def test_a_target_that_is_none(aegis: Callable[..., Outcome], target: str) -> None:
    outcome = aegis("tunnel", "abc", f"--remote={target}")
    assert outcome.code == 2
    assert "is no place to log in to" in outcome.err
