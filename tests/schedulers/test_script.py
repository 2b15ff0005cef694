"""The job script: the same text as the dry run, and safe with any name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis import __version__
from aegis.schedulers.base import JobRequest
from aegis.schedulers.script import script
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.dump import dump_deployment
from aegis.spec.platforms import BUILT_IN, Site
from aegis.spec.resolve import resolve

if TYPE_CHECKING:
    from typing import Any

GOLDEN = Path(__file__).parents[1] / "fixtures" / "scripts" / "local.sh"
FILE = Path(__file__).parents[1] / "fixtures" / "deployments" / "single.yaml"
HOSTILE = [
    *(
        "a b",
        "a'b",
        'a"b',
        "a\nb",
        "$(touch X)",
        "`touch X`",
        "; touch X",
        "a && touch X",
        "| touch X",
        "$HOME",
    ),
    *(
        "!!",
        "*",
        "~",
        "-x",
        "\\",
        "é🎉",
        "\t",
        "\r",
        "#",
        "AEGIS_DEPLOYMENT",
        "x\nAEGIS_DEPLOYMENT\ntouch X\n",
    ),
    *("EOF\ntouch X", "\n#PBS -q evil", "\x1b[2J", "a\u2028touch X"),
]
# Stands for Python: notes its arguments, its directory and its standard input.
FAKE = """#!/bin/bash
printf '%s\\0' "$@" > "$OUT.argv"
pwd > "$OUT.cwd"
cat > "$OUT.stdin"
"""


def request(**changes: Any) -> JobRequest:
    values: dict[str, Any] = {
        "name": "Llama",
        "models": ("meta-llama/Llama-3.3-70B-Instruct",),
        "nodes": 1,
        "work_dir": "/home/me/project",
        "log_dir": "/home/me/.aegis-logs",
        "endpoints_file": "/home/me/project/aegis_endpoints.txt",
        "deployment": "models:\n  - model: m\n",
        "python": "/opt/aegis/bin/python",
    }
    return JobRequest(**{**values, **changes})


def test_the_local_script() -> None:
    resolved = resolve(FILE, {"platform": "local"}, {}, Site((BUILT_IN,), "laptop", lambda _: False))
    text = script(request(deployment=dump_deployment(resolved.deployment, brief=True)))
    assert text == GOLDEN.read_text(encoding="utf-8").replace("VERSION", __version__)


def test_directives_and_setup_stand_where_they_belong() -> None:
    lines = script(request(setup=("module load x",)), ("#PBS -q debug",)).splitlines()
    assert lines[:2] == ["#!/bin/bash -l", "#PBS -q debug"]
    assert lines.index("module load x") == lines.index("cd -- /home/me/project || exit 3") + 1


def run(text: str, folder: Path) -> tuple[list[str], str, str]:
    """Run a script with the fake Python; return its arguments, its directory and its standard input."""
    file = folder / "job.sh"
    file.write_bytes(text.encode())
    subprocess.run(["bash", "-n", str(file)], check=True, timeout=10)
    out = folder / "out"
    subprocess.run(
        ["bash", str(file)],
        check=True,
        timeout=10,
        env={"OUT": str(out), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )
    argv = out.with_suffix(".argv").read_bytes().decode().split("\0")[:-1]
    where = out.with_suffix(".cwd").read_bytes().decode().removesuffix("\n")
    return argv, where, out.with_suffix(".stdin").read_bytes().decode()


def fake_python(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_arrive_and_nothing_else_happens(tmp_path: Path, hostile: str) -> None:
    work = tmp_path / "work" / f"w{hostile.replace('/', '')}"
    work.mkdir(parents=True)
    python = fake_python(tmp_path / "env" / f"p{hostile.replace('/', '')}")
    entry = ModelEntry(model=f"m{hostile}", extra_vllm_args=(hostile,), env={"A": hostile})
    deployment = dump_deployment(Deployment(models=(entry,), name=hostile, account=hostile), brief=True)
    text = script(request(name=hostile, work_dir=str(work), python=str(python), deployment=deployment))
    argv, where, stdin = run(text, tmp_path)
    assert argv == ["-P", "-m", "aegis", "launch", "--config", "-", "--no-environment"]
    assert where == str(work)
    assert stdin == deployment
    assert not list(tmp_path.rglob("X"))
    assert len(list(work.iterdir())) == 0


@pytest.mark.parametrize("line", ["AEGIS_DEPLOYMENT", "AEGIS_DEPLOYMENT\nAEGIS_DEPLOYMENT_\ntouch X"])
def test_the_text_cannot_end_the_deployment(tmp_path: Path, line: str) -> None:
    text = f"a: |\n{line}\nrest\n"
    _, _, stdin = run(
        script(request(deployment=text, work_dir=str(tmp_path), python=str(fake_python(tmp_path)))), tmp_path
    )
    assert stdin == text
    assert not (tmp_path / "X").exists()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
    st.lists(
        st.sampled_from(["AEGIS_DEPLOYMENT", "AEGIS_DEPLOYMENT_", "$(touch X)", "", "'", "\r", "\x0c"]),
        max_size=6,
    ),
)
def test_any_text_arrives(tmp_path: Path, name: str, lines: list[str]) -> None:
    deployment = "\n".join([*lines, "end"]) + "\n"
    text = script(
        request(name=name, deployment=deployment, work_dir=str(tmp_path), python=str(fake_python(tmp_path)))
    )
    assert run(text, tmp_path)[2] == deployment
    assert not (tmp_path / "X").exists()


def test_a_missing_directory_ends_the_job(tmp_path: Path) -> None:
    text = script(request(work_dir=str(tmp_path / "nowhere"), python=str(fake_python(tmp_path))))
    done = subprocess.run(["bash", "-c", text], capture_output=True, check=False, timeout=10)
    assert done.returncode == 3


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("hostile", ["plain", "a'b $(touch X)\n`x`"])
def test_shellcheck_has_nothing_to_say(tmp_path: Path, hostile: str) -> None:
    file = tmp_path / "job.sh"
    file.write_text(script(request(name=hostile, work_dir=f"/{hostile}", deployment=hostile)))
    done = subprocess.run(
        ["shellcheck", "--severity=warning", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stdout == ""
