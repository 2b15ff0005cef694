"""The job scripts of PBS: as written down, quoted, and honest about what PBS does not have."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis import __version__
from aegis.errors import ConfigError
from aegis.schedulers.base import After
from aegis.schedulers.pbs import Pbs
from aegis.schedulers.pbs.directives import job_shell
from aegis.schedulers.transport import Here

from .pbs_recordings import FOLDER, SERVER
from .pbs_requests import component, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aegis.schedulers.base import JobRequest

PBS = Pbs(Here({}), {})
SMALL = {"cpus": 32, "devices": 4, "device_option": "ngpus", "memory": "64G"}
SCRIPTS: dict[str, JobRequest] = {
    "plain": request(
        component(
            resources={
                "nodes": 2,
                "queue": "prod",
                "account": "MyProject",
                "filesystems": "flare:home",
                "directives": ("-l place=scatter", "-M me@example.org"),
            }
        ),
        setup=("module load frameworks",),
    ),
    "shares": request(component(resources={**SMALL, "device_type": "gpu_model=a100"})),
    "named-nodes": request(component(resources={"nodes": 3, "cpus": 8, "nodelist": "x1, x2"})),
    "keep-alive": request(
        service="chat", after=After(job="pbs://1025.aurora-pbs-0001", seconds=36000, time=1_800_000_000.0)
    ),
    "two-models": request(
        component(resources={**SMALL, "nodes": 2}),
        component("Qwen/Qwen3-0.6B", folder="/home/me/.aegis-logs/Qwen3", resources={"walltime": "02:00:00"}),
        name="both",
    ),
}
HOSTILE = [
    *("a b", "a'b", 'a"b', "$(touch X)", "`touch X`", "; touch X", "| touch X", "$HOME", "!!", "*", "~"),
    *("-x", "\\", "#", "a:b", "a,b", "x y/../z"),
]
UNSPEAKABLE = ["a\nb", "\n#PBS -q evil", "\t", "\r", "\x1b[2J", "é🎉", "a\u2028b"]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PBS reads times in the zone of whoever submits."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def directives(**resources: Any) -> list[str]:
    return list(job_shell(request(component(resources=resources))).directives)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_is_as_written_down(name: str) -> None:
    golden = FOLDER / "scripts" / f"{name}.sh"
    assert PBS.render(SCRIPTS[name]) == golden.read_text(encoding="utf-8").replace("VERSION", __version__)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    file = tmp_path / "job.sh"
    file.write_text(PBS.render(SCRIPTS[name]))
    done = subprocess.run(
        ["shellcheck", "--severity=warning", str(file)], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def words(line: str) -> list[str]:
    """Split a directive as qsub does: quotes of both kinds, and a backslash before anything."""
    return shlex.split(line.removeprefix("#PBS "))


def value(lines: list[str], flag: str) -> str:
    """Return the value of a flag that stands once."""
    ((_, found),) = (words(line) for line in lines if line.startswith(f"#PBS {flag} "))
    return found


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_values_arrive_whole(hostile: str) -> None:
    each = component(folder=f"/logs/{hostile}", resources={"account": hostile, "queue": hostile})
    lines = list(job_shell(request(each)).directives)
    assert value(lines, "-A") == hostile
    assert value(lines, "-q") == hostile
    assert value(lines, "-o") == f"/logs/{hostile}/.pbs/"
    assert all(line.startswith("#PBS -") for line in lines)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_any_printable_value_arrives_whole(text: str) -> None:
    assert value(directives(account=text), "-A") == text


@pytest.mark.parametrize("hostile", UNSPEAKABLE)
def test_what_pbs_cannot_be_told_is_refused(hostile: str) -> None:
    for changes in (
        {"account": hostile},
        {"queue": hostile},
        {"filesystems": hostile},
        {"nodelist": hostile},
    ):
        with pytest.raises(ConfigError) as error:
            directives(**changes)
        assert error.value.hint
    with pytest.raises(ConfigError, match="the log directory"):
        job_shell(request(component(folder=f"/logs/{hostile}")))


@pytest.mark.parametrize("hostile", [*HOSTILE, *UNSPEAKABLE, "", "---"])
def test_any_name_becomes_one_of_pbs(hostile: str) -> None:
    name = value(list(job_shell(request(name=hostile)).directives), "-N")
    assert name[0].isalpha()
    assert name.isascii()
    assert len(name) <= 64
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-")


def test_a_name_is_kept_where_pbs_allows_it() -> None:
    assert value(list(job_shell(request()).directives), "-N") == "Llama-3.1-8B-Instruct"
    assert value(list(job_shell(request(name="7B model")).directives), "-N") == "aegis-7B-model"
    assert len(value(list(job_shell(request(name="x" * 300)).directives), "-N")) == 64


@pytest.mark.parametrize("hostile", ["a b", "a,b=c", "a'b", "$x", "a;b", " "])
def test_lists_of_resources_take_plain_words_only(hostile: str) -> None:
    with pytest.raises(ConfigError, match="filesystems"):
        directives(filesystems=hostile)
    with pytest.raises(ConfigError, match="types of devices"):
        directives(device_type=f"gpu_model={hostile}", device_option="ngpus")


@pytest.mark.parametrize("name", ["qos", "constraint", "exclude"])
def test_what_only_slurm_has_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"PBS has no {name}: `x`") as error:
        directives(**{name: "x"})
    assert error.value.hint


@pytest.mark.parametrize(
    ("resources", "select"),
    [
        ({"nodes": 3}, "3"),
        ({"nodes": 1, "devices": 12, "device_type": "a100"}, "1"),
        ({"nodes": 2, "devices": 4, "device_option": "ngpus"}, "2:ngpus=4"),
        ({"nodes": 1, "cpus": 8, "memory": "64G"}, "1:ncpus=8:mem=64gb"),
        ({"nodes": 1, "memory": "512 MiB"}, "1:mem=512mb"),
        ({"nodes": 2, "nodelist": "a,b"}, "1:host=a+1:host=b"),
        ({"nodes": 3, "nodelist": "a,b,a", "cpus": 2}, "1:host=a:ncpus=2+1:host=b:ncpus=2+1:ncpus=2"),
    ],
)
def test_chunks(resources: dict[str, Any], select: str) -> None:
    assert f"#PBS -l select={select}" in directives(**resources)


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"nodes": 1, "nodelist": "a,b"}, "more nodes are named than the job has: b"),
        ({"nodelist": "x[1-3]"}, "`x\\[1-3\\]` is no host name"),
        ({"memory": "much"}, "no amount of memory"),
        ({"memory": "64"}, "no amount of memory"),
        ({"device_type": "a100", "device_option": "ngpus"}, "no types of devices"),
        ({"directives": ("-m e\n#PBS -q evil",)}, "one line"),
    ],
)
def test_what_makes_no_sense_is_refused(resources: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        directives(**resources)


def test_directives_of_the_site_come_last_and_once() -> None:
    lines = directives(directives=("-l place=pack", "#PBS -m e", "", "-m e"))
    assert lines[-2:] == ["#PBS -l place=pack", "#PBS -m e"]
    assert "#PBS -l place=scatter" not in lines
    assert "#PBS -l place=scatter" in directives()


def test_components_share_what_one_job_has_once() -> None:
    both = request(
        component(resources={"walltime": "00:30:00", "account": "a"}),
        component(resources={"walltime": "1-00:00:00", "account": None, "nodes": 2}),
    )
    lines = list(job_shell(both).directives)
    assert "#PBS -l walltime=24:00:00" in lines
    assert "#PBS -l select=1+2" in lines
    assert value(lines, "-A") == "a"
    for name in ("account", "queue", "filesystems"):
        clash = request(component(resources={name: "a"}), component(resources={name: "b"}))
        with pytest.raises(ConfigError, match=f"one PBS job has one {name}, not `a` and `b`"):
            job_shell(clash)


def test_named_nodes_are_handed_out_to_the_components_in_turn() -> None:
    each = {"nodes": 1, "nodelist": "a,b"}
    lines = job_shell(request(component(resources=each), component(resources=each))).directives
    assert "#PBS -l select=1:host=a+1:host=b" in lines


# ------------------------------------------------------------------------------------------------ the script runs

# Stands for Python: notes what it was given.
FAKE = """#!/bin/bash
{ echo "$AEGIS_JOB"; echo "$AEGIS_RUN_DIR"; pwd; cat "$PBS_NODEFILE"; } >"$AEGIS_RUN_DIR/seen"
cat >"$AEGIS_RUN_DIR/stdin"
echo out; echo err >&2
"""


def run(wanted: JobRequest, folder: Path, nodes: list[str]) -> int:
    """Run a script as PBS does: in another folder, with a node file."""
    node_file = folder / "nodes"
    node_file.write_text("".join(f"{node}\n" for node in nodes))
    script = folder / "job.sh"
    script.write_text(PBS.render(wanted))
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PBS_JOBID": f"1025.{SERVER}",
        "PBS_NODEFILE": str(node_file),
    }
    return subprocess.run(["bash", str(script)], env=environ, cwd=folder, check=False, timeout=30).returncode


@pytest.fixture
def python(tmp_path: Path) -> str:
    file = tmp_path / "python"
    file.write_text(FAKE)
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("hostile", ["plain", *HOSTILE])
def test_the_job_finds_its_place(tmp_path: Path, python: str, hostile: str) -> None:
    work = tmp_path / f"work {hostile}".replace("/", "_")
    work.mkdir()
    folder = tmp_path / "logs" / hostile.replace("/", "_")
    each = component(folder=str(folder), deployment=f"name: {hostile!r}\n")
    assert run(request(each, work_dir=str(work), python=python, name=hostile), tmp_path, ["a", "a", "b"]) == 0
    (place,) = folder.iterdir()
    assert place.name == "Llama-3.1-8B-Instruct.1025.aurora-pbs-0001"
    seen = (place / "seen").read_text().splitlines()
    assert seen == [f"pbs://1025.{SERVER}", str(place), str(work), "a", "a", "b"]
    assert (place / "stdin").read_text() == f"name: {hostile!r}\n"
    assert (place / f"{place.name}.out").read_text() == "out\n"
    assert (place / f"{place.name}.err").read_text() == "err\n"
    assert not list(tmp_path.rglob("X"))


def test_each_component_has_nodes_of_its_own(tmp_path: Path, python: str) -> None:
    both = request(
        component("A", folder=str(tmp_path / "logs"), resources={"nodes": 2}),
        component("B", folder=str(tmp_path / "logs")),
        work_dir=str(tmp_path),
        python=python,
    )
    assert run(both, tmp_path, ["x", "x", "y", "z"]) == 0
    seen = {place.name: (place / "seen").read_text().splitlines() for place in (tmp_path / "logs").iterdir()}
    assert sorted(seen) == ["A.1025.aurora-pbs-0001+0", "B.1025.aurora-pbs-0001+1"]
    first, second = (seen[name] for name in sorted(seen))
    assert (first[0], first[3:]) == (f"pbs://1025.{SERVER}+0", ["x", "y"])
    assert (second[0], second[3:]) == (f"pbs://1025.{SERVER}+1", ["z"])


def test_too_few_nodes_are_told(tmp_path: Path, python: str) -> None:
    both = request(
        component("A", folder=str(tmp_path / "logs"), resources={"nodes": 2}),
        component("B", folder=str(tmp_path / "logs")),
        work_dir=str(tmp_path),
        python=python,
    )
    assert run(both, tmp_path, ["x", "y", "y"]) == 3
    (log,) = (tmp_path / "logs").glob("B.*/*.err")
    assert "fewer nodes than it asked for" in log.read_text()


def test_a_missing_work_directory_ends_the_job(tmp_path: Path, python: str) -> None:
    assert run(request(work_dir=str(tmp_path / "nowhere"), python=python), tmp_path, ["x"]) == 3


def test_what_goes_on_when_a_job_has_ended_waits_for_its_end() -> None:
    text = PBS.render(request(after=After(job="pbs://1025.aurora-pbs-0001", ended=True)))
    assert "#PBS -W depend=afterany:1025.aurora-pbs-0001\n" in text
    assert "#PBS -a" not in text
