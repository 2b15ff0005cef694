"""`aegis map --script` as its users type it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis.api.targets import Target
from aegis.cli.map_files_run import check_model, find_site, progress_line
from aegis.errors import ConfigError, SiteError
from aegis.mapper.files.progress import Progress
from aegis.mapper.files.script import Script
from tests.engines.conftest import sim, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engines.conftest import Sim

__all__ = ["sim"]
CLIENT = """
import os, sys, time, urllib.request
source, output, url, seconds = sys.argv[1:]
with urllib.request.urlopen(url + "/v1/models") as answer, open(os.path.join(output, "models"), "wb") as file:
    file.write(answer.read())
time.sleep(float(seconds))
"""


def aegis(*words: object) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "aegis", "map", *map(str, words)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    for name in ("a/x 1.txt", "b/x 1.txt", "b/$(x).txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    (tmp_path / "client.py").write_text(CLIENT)
    return tmp_path / "in"


@pytest.mark.lab
def test_from_inputs_to_results(sim: Callable[..., Sim], inputs: Path, tmp_path: Path) -> None:
    servers = [sim(), sim()]
    endpoints = tmp_path / "endpoints"
    endpoints.write_text("".join(f"127.0.0.1:{each.port}\n" for each in servers))
    out, client = tmp_path / "out", tmp_path / "client.py"
    words = [f"{inputs}/*/*.txt", "--output", out, "--endpoints-file", endpoints, "--json", "--script"]
    script = f"{sys.executable} {client} {{input}} {{output}} {{base_url}}"

    told, _ = ended(aegis(*words, f"{script} 0"), 0)
    found = json.loads(told)
    assert (found["files"], found["done"], found["failed"], found["left"]) == (3, 3, 0, 0)
    assert (found["output"], found["error"], found["rows"]) == (str(out), None, 3)
    with tarfile.open(out / "b/$(x).txt.tar.gz") as archive:
        assert archive.getnames() == ["$(x).txt", "$(x).txt/models"]
    _, err = ended(aegis(*words, f"{script} 0"), 0)
    assert "3 of 3 files are done already" in err
    _, err = ended(aegis(*words, f"{script} 1"), 2)
    assert "begun with another script" in err


@pytest.mark.lab
def test_interrupted_twice_it_ends_at_once_and_the_same_command_continues(
    sim: Callable[..., Sim], inputs: Path, tmp_path: Path
) -> None:
    endpoints, out, client = tmp_path / "endpoints", tmp_path / "out", tmp_path / "client.py"
    endpoints.write_text(f"127.0.0.1:{sim().port}\n")
    words = [f"{inputs}/*/*.txt", "--output", out, "--endpoints-file", endpoints, "--slots", 3, "--script"]
    script = f'sh -c \'{sys.executable} "$@" $(cat "$0")\' {tmp_path}/seconds {client} {{input}} {{output}} {{base_url}}'
    (tmp_path / "seconds").write_text("60")
    process = aegis(*words, script)
    wait_until(lambda: running(client) == 6)  # each a shell and its program
    process.send_signal(signal.SIGINT)
    assert process.stderr
    for line in process.stderr:
        if "Ctrl-C again" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = ended(process, 6)
    assert "interrupted; 3 left" in err
    wait_until(lambda: running(client) == 0)
    (tmp_path / "seconds").write_text("0")
    ended(aegis(*words, script), 0)
    assert len(list(out.rglob("*.tar.gz"))) == 3


def running(client: Path) -> int:
    """How many processes have this client in their command line, but for drivers."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        found += os.fsencode(client) in words and b"aegis" not in words
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--script", "client {inptu}", "--output", "out"], "did you mean `input`?"),
        (["--script", "client {input}"], "--output DIR"),
        (["--script", "client {input}", "--output", "out", "--max-tokens", "3"], "--max-tokens is for rows"),
        (["--script", "client {input}", "--output", "out", "gone.txt"], "gone.txt': No such file"),
    ],
)
def test_mistakes_are_told(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _, err = ended(aegis(f"{inputs}/a/*", *words), 2)
    assert said in err


def target(node: str, *models: str) -> Target:
    return Target(node, 8000, models, node)


def test_a_model_must_be_served_and_be_clear() -> None:
    script = Script.parse("client {input} {model}")
    both = (target("a", "m"), target("b", "n"))
    check_model(script, both, "n")
    check_model(Script.parse("client {input}"), both, None)
    check_model(script, (), None)
    with pytest.raises(ConfigError, match="no instance serves 'o'"):
        check_model(script, both, "o")
    with pytest.raises(ConfigError, match="several models"):
        check_model(script, both, None)


@pytest.mark.parametrize(
    ("environ", "where", "nodes", "expected"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}, "auto", ["n1", "n2"], "srun"),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}, "auto", ["n1", "n3"], "here"),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}, "here", ["n1", "n2"], "here"),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}, "nodes", ["n3"], "error"),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}, "auto", [], "here"),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1", "AEGIS_JOB": "slurm://1"}, "auto", [], "srun"),
        ({"AEGIS_PLATFORM": "generic-pbs"}, "auto", ["n1"], "here"),
        ({"AEGIS_PLATFORM": "generic-pbs"}, "nodes", ["n1"], "error"),
        ({"AEGIS_PLATFORM": "local"}, "auto", ["n1"], "here"),
        ({"AEGIS_PLATFORM": "local"}, "nodes", ["n1"], "local"),
    ],
)
def test_programs_run_where_their_servers_are_if_that_is_our_job(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], where: str, nodes: list[str], expected: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    targets = tuple(target(node, "m") for node in nodes)
    if expected == "error":
        with pytest.raises(SiteError, match="allocation"):
            find_site(where, targets)
        return
    site = find_site(where, targets)
    assert (site.launcher if site.nodes else "here") == expected


def test_the_line_tells_how_far_it_is() -> None:
    known: dict[str, Any] = {"files": 1200, "bytes": 3 << 30, "done": 300, "done_bytes": 1 << 30, "failed": 0}
    now = Progress(**known, running=8, instances=1, resting=0, rate=None, files_rate=None, eta=None)
    assert progress_line(now) == "300 of 1,200 files (25 %), 1.0 GiB of 3.0 GiB, 8 running on 1 instance"
    known |= {"failed": 2}
    now = Progress(**known, running=8, instances=4, resting=1, rate=1 << 20, files_rate=0.25, eta=2048.0)
    assert progress_line(now) == (
        "300 of 1,200 files (25 %), 1.0 GiB of 3.0 GiB, 1.0 MiB/s, 15 files/min, 34:08 left, 2 failed, "
        "8 running on 4 instances, 1 resting after failures"
    )
