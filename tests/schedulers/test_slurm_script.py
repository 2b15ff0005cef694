"""The job scripts of Slurm: as written down, quoted as sbatch reads it, and the same whatever the user's variables say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis import __version__
from aegis.errors import ConfigError
from aegis.schedulers.base import After
from aegis.schedulers.slurm import Slurm
from aegis.schedulers.slurm.directives import foreign, job_shell
from aegis.schedulers.transport import Here

from .job_requests import component, request

if TYPE_CHECKING:
    from aegis.schedulers.base import JobRequest

FOLDER = Path(__file__).parents[1] / "fixtures" / "slurm" / "scripts"
SLURM = Slurm(Here({}), {})
SHARE = {"devices": 4, "device_option": "gres", "device_type": "l40s", "cpus": 64, "memory": "256G"}
SCRIPTS: dict[str, JobRequest] = {
    "plain": request(),
    "share-of-a-node": request(component(resources=SHARE)),
    "whole-nodes": request(
        component(
            resources={
                "nodes": 4,
                "devices": 4,
                "device_option": "gpus-per-node",
                "account": "m1234",
                "qos": "regular",
                "walltime": "00:05:00",
                "directives": ("-C gpu", "#SBATCH --mail-type=END"),
                "constraint": "gpu&hbm80g",
            }
        ),
        setup=("module load python",),
    ),
    "picked-nodes": request(
        component(
            resources={
                "queue": "a40",
                "nodes": 2,
                "nodelist": "node[1-4]",
                "exclude": "node3",
                "walltime": None,
            }
        )
    ),
    "hostile-names": request(
        component(
            'org/it\'s "5%"',
            folder="/home/me/my $(logs) 100%j/it's",
            stem="it-s-5",
            resources={"account": "a b"},
        ),
        name='a "b" c\\d',
    ),
    "keep-alive": request(service="chat", after=After(job="slurm://1234", seconds=35999, failed_starts=1)),
    "two-models": request(
        component(resources={**SHARE, "nodes": 2, "queue": "a40"}),
        component("Qwen/Qwen3-0.6B", folder="/home/me/.aegis-logs/Qwen3", resources={**SHARE, "devices": 1}),
        name="both",
    ),
}
HOSTILE = [
    *(
        "a b",
        "a'b",
        'a"b',
        "$(touch X)",
        "`touch X`",
        "; touch X",
        "$HOME",
        "!!",
        "*",
        "~",
        "-x",
        "\\",
        "#",
        "é🎉",
    ),
    *("a\\", '"', "a\u2028b", "%j", " ", "#SBATCH --hold"),
]


def directives(**resources: Any) -> list[str]:
    lines = job_shell(request(component(resources=resources))).directives
    return [line.removeprefix("#SBATCH ") for line in lines]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_is_as_written_down(name: str) -> None:
    golden = (FOLDER / f"{name}.sh").read_text(encoding="utf-8")
    assert SLURM.render(SCRIPTS[name]) == golden.replace("VERSION", __version__)


def test_every_script_that_is_written_down_is_tested() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(SCRIPTS)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    file = tmp_path / "job.sh"
    file.write_text(SLURM.render(SCRIPTS[name]))
    severity = "warning" if name == "hostile-names" else "style"  # quoted names look like slips
    done = subprocess.run(
        ["shellcheck", f"--severity={severity}", file],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stdout == ""


def as_sbatch_reads(line: str) -> list[str]:
    """Return the words of an option line: both quotes quote, a backslash takes the next character as it is, anywhere."""
    words, word, quote, started, escaped = [], "", "", False, False
    for char in line:
        if escaped:
            word, escaped = word + char, False
        elif char == "\\":
            escaped = started = True
        elif char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote, started = char, True
        elif not quote and char == "#" and not started:
            break
        elif not quote and char in " \t\n\v\f\r":
            words += [word] if started else []
            word, started = "", False
        else:
            word, started = word + char, True
    assert not quote
    return [*words, word] if started else words


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_sbatch_reads_any_name_as_it_was(name: str) -> None:
    first = job_shell(request(name=name)).directives[0]
    assert as_sbatch_reads(first.removeprefix("#SBATCH ")) == [f"--job-name={name}"]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("field", ["queue", "account", "qos", "constraint", "nodelist", "exclude", "memory"])
def test_a_hostile_value_stays_one_word(field: str, hostile: str) -> None:
    options = {"queue": "partition", "memory": "mem"}
    words = [as_sbatch_reads(line) for line in directives(**{field: hostile})]
    assert [f"--{options.get(field, field)}={hostile}"] in words
    assert {len(each) for each in words} == {1}


@pytest.mark.parametrize("unspeakable", ["a\nb", "\n#SBATCH --hold", "\t", "\r", "\x1b[2J", "a\x00b", "\x7f"])
@pytest.mark.parametrize("field", ["queue", "account", "qos", "constraint", "nodelist", "exclude", "memory"])
def test_what_no_line_can_hold_is_refused(field: str, unspeakable: str) -> None:
    with pytest.raises(ConfigError, match="sbatch cannot be told --"):
        directives(**{field: unspeakable})
    with pytest.raises(ConfigError, match="sbatch cannot be told --job-name"):
        SLURM.render(request(name=unspeakable))
    with pytest.raises(ConfigError):
        SLURM.render(request(component(folder=f"/logs{unspeakable}")))


def test_a_directive_is_one_line() -> None:
    with pytest.raises(ConfigError, match="a directive of Slurm is one line"):
        directives(directives=("--a\n#SBATCH --b",))


def test_a_log_directory_with_a_backslash_is_refused() -> None:
    with pytest.raises(ConfigError, match="backslash") as error:
        SLURM.render(request(component(folder="/logs/a\\b")))
    assert "--log-dir" in str(error.value.hint)


@pytest.mark.parametrize(("walltime", "seconds"), [("01:00:00", 60), ("00:05:00", 30), (None, 60)])
def test_the_servers_are_told_in_time(walltime: str | None, seconds: int) -> None:
    assert f"--signal=B:TERM@{seconds}" in directives(walltime=walltime)


@pytest.mark.parametrize(
    ("field", "value"),
    [("account", "m1"), ("qos", "m"), ("memory", "64G"), ("exclude", "n1"), ("walltime", "09:00:00")],
)
def test_a_component_gets_nothing_that_was_meant_for_another(field: str, value: str) -> None:
    resources = {"walltime": None, field: value}
    bare = component("org/second", resources={"walltime": None})
    with pytest.raises(ConfigError, match=rf"org/second says no .*: {value}"):
        SLURM.render(request(component(resources=resources), bare))
    SLURM.render(request(bare, component(resources=resources)))  # what comes first is not given on


def test_only_what_the_script_says_itself_is_taken_from_the_user() -> None:
    environ = {
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_CPU": "9",
        "SLURM_CONF": "/etc/s",
        "PATH": "/bin",
        "SLURM_JWT": "x",
    }
    unset = foreign(SLURM.render(SCRIPTS["whole-nodes"]), environ)
    assert set(unset.values()) == {""}
    asked = {"SBATCH_ACCOUNT", "SBATCH_QOS", "SBATCH_TIMELIMIT", "SBATCH_CONSTRAINT", "SBATCH_GPUS_PER_NODE"}
    assert asked <= set(unset)
    assert {"SBATCH_EXPORT", "SBATCH_WAIT", "SBATCH_ARRAY_INX"} <= set(unset)
    assert {"SLURM_JOB_ID", "SLURM_MEM_PER_CPU"} <= set(unset)
    left = {"SBATCH_PARTITION", "SBATCH_GRES", "SBATCH_RESERVATION", "SLURM_CONF", "SLURM_JWT", "PATH"}
    assert not left & set(unset)


def test_what_goes_on_when_a_job_has_ended_waits_for_its_end() -> None:
    text = SLURM.render(request(after=After(job="slurm://1234", ended=True)))
    assert "#SBATCH --dependency=afterany:1234\n" in text
