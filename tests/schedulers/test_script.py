"""The job script: the same text as the dry run, and safe with any name."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis import __version__
from aegis.schedulers.base import After
from aegis.schedulers.script import JobShell, script
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.dump import dump_deployment
from aegis.spec.platforms import BUILT_IN, Site
from aegis.spec.resolve import resolve

from .job_requests import component, request

if TYPE_CHECKING:
    from collections.abc import Iterator

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
SHELL = JobShell(
    scheme="sched",
    directives=("#SCHED -q debug",),
    first=("short=${SCHED_ID%%.*}",),
    job_id="$SCHED_ID",
    folder_id="$short",
    narrowing=(("export NODES=one",), ("export NODES=two",)),
)
# Stands for Python: notes its arguments, its directory and its standard input.
FAKE = """#!/bin/bash
printf '%s\\0' "$@" > "$OUT.argv"
pwd > "$OUT.cwd"
cat > "$OUT.stdin"
"""


def test_the_local_script() -> None:
    resolved = resolve(FILE, {"platform": "local"}, {}, Site((BUILT_IN,), "laptop", lambda _: False))
    text = script(request(component(deployment=dump_deployment(resolved.deployment, brief=True))))
    assert text == GOLDEN.read_text(encoding="utf-8").replace("VERSION", __version__)


def test_a_successor_is_told_whom_it_takes_over_from(tmp_path: Path) -> None:
    hostile = "local://k3f9; touch 'X' $(touch X)"
    lines = script(request(after=After(job=hostile, failed_starts=2))).splitlines()
    start = lines.index("cd -- /home/me/project || exit 3") + 1
    file = tmp_path / "part.sh"
    file.write_text(
        "\n".join([*lines[start : start + 2], 'printf "%s" "$AEGIS_PREDECESSOR $AEGIS_FAILED_STARTS"'])
    )
    done = subprocess.run(["bash", file], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"{hostile} 2"
    assert not (tmp_path / "X").exists()


def test_directives_and_setup_stand_where_they_belong() -> None:
    lines = script(request(setup=("module load x",)), SHELL).splitlines()
    assert lines[:2] == ["#!/bin/bash -l", "#SCHED -q debug"]
    assert lines.index("module load x") == lines.index("cd -- /home/me/project || exit 3") + 2


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
    text = script(
        request(component(deployment=deployment), name=hostile, work_dir=str(work), python=str(python))
    )
    argv, where, stdin = run(text, tmp_path)
    assert argv == ["-P", "-m", "aegis", "launch", "--config", "-", "--no-environment"]
    assert where == str(work)
    assert stdin == deployment
    assert not list(tmp_path.rglob("X"))
    assert len(list(work.iterdir())) == 0


@pytest.mark.parametrize("line", ["AEGIS_DEPLOYMENT", "AEGIS_DEPLOYMENT\nAEGIS_DEPLOYMENT_\ntouch X"])
def test_the_text_cannot_end_the_deployment(tmp_path: Path, line: str) -> None:
    text = f"a: |\n{line}\nrest\n"
    job = request(component(deployment=text), work_dir=str(tmp_path), python=str(fake_python(tmp_path)))
    _, _, stdin = run(script(job), tmp_path)
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
    job = request(
        component(deployment=deployment),
        name=name,
        work_dir=str(tmp_path),
        python=str(fake_python(tmp_path)),
    )
    assert run(script(job), tmp_path)[2] == deployment
    assert not (tmp_path / "X").exists()


def test_a_missing_directory_ends_the_job(tmp_path: Path) -> None:
    text = script(request(work_dir=str(tmp_path / "nowhere"), python=str(fake_python(tmp_path))))
    done = subprocess.run(["bash", "-c", text], capture_output=True, check=False, timeout=10)
    assert done.returncode == 3


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("hostile", ["plain", "a'b $(touch X)\n`x`"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_shellcheck_has_nothing_to_say(tmp_path: Path, hostile: str, count: int) -> None:
    """Of a local job, one of a scheduler, and one of several components."""
    parts = [component(folder=f"/{hostile}", deployment=hostile)] * max(count, 1)
    job = request(*parts, name=hostile, work_dir=f"/{hostile}")
    file = tmp_path / "job.sh"
    file.write_text(script(job, SHELL if count else None))
    severity = (
        "--severity=style" if hostile == "plain" else "--severity=warning"
    )  # quoted names look like slips
    done = subprocess.run(
        ["shellcheck", severity, str(file)], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout == ""


# ---------------------------------------------------------------------------------------- several components

# Stands for the head of a job: says who it is, waits for the end, then ends as it is told. As of the head itself, a second signal does
# not end it on its way out.
HEAD = """#!/bin/bash
model=$(sed -n 's/.*model: //p')
trap 'trap "" TERM; echo "$model told"; sleep 0.2; exit "$(cat "code.$model")"' TERM
echo "$AEGIS_JOB $AEGIS_RUN_DIR $NODES"
[ -e "at-once.$model" ] && exit "$(cat "code.$model")"
touch "ready.$model"
sleep 60 & wait
"""


class Batch:
    """A job of two components, run by hand."""

    def __init__(self, folder: Path, codes: tuple[int, int]) -> None:
        self.folder = folder
        python = folder / "python"
        python.write_text(HEAD)
        python.chmod(0o755)
        for model, code in zip("ab", codes, strict=True):
            (folder / f"code.{model}").write_text(str(code))
        parts = [component(model, folder=f"{folder}/it's logs") for model in "ab"]
        text = script(request(*parts, work_dir=str(folder), python=str(python)), SHELL)
        (folder / "job.sh").write_text(text)
        self.environ: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(
            ["bash", str(self.folder / "job.sh")],
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "SCHED_ID": "7.server"} | self.environ,
            start_new_session=True,
        )
        return self.process

    def output(self, model: str) -> list[str]:
        number = "ab".index(model)
        folder = self.folder / "it's logs" / f"{model}.7+{number}"
        return (folder / f"{folder.name}.out").read_text().splitlines()

    def wait_for(self, *models: str) -> None:
        deadline = time.monotonic() + 20
        while not all((self.folder / f"ready.{model}").exists() for model in models):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> None:
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def batch(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Batch]:
    made = Batch(tmp_path, getattr(request, "param", (0, 0)))
    yield made
    made.end()


def test_each_component_has_a_name_a_place_and_nodes_of_its_own(batch: Batch) -> None:
    for model in "ab":
        (batch.folder / f"at-once.{model}").touch()
    assert batch.start().wait(20) == 0
    logs = batch.folder / "it's logs"
    assert batch.output("a") == [f"sched://7.server+0 {logs}/a.7+0 one"]
    assert batch.output("b") == [f"sched://7.server+1 {logs}/b.7+1 two"]


def test_the_names_of_the_script_may_mean_something_else_to_the_user(batch: Batch) -> None:
    batch.environ = {"told": "1", "launches": "1", "code": "9", "job": "1"}
    process = batch.start()
    batch.wait_for("a", "b")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    assert process.wait(20) == 0
    assert [batch.output(model)[1:] for model in "ab"] == [["a told"], ["b told"]]


@pytest.mark.parametrize(
    ("batch", "code"), [((0, 0), 0), ((0, 3), 3), ((4, 3), 4), ((5, 0), 5)], indirect=["batch"]
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_component_and_the_job_waits_for_their_ends(
    batch: Batch, code: int, number: int
) -> None:
    process = batch.start()
    batch.wait_for("a", "b")
    process.send_signal(number)
    assert process.wait(20) == code
    assert [batch.output(model)[1:] for model in "ab"] == [["a told"], ["b told"]]


@pytest.mark.parametrize(("batch", "code"), [((0, 3), 3), ((4, 3), 4)], indirect=["batch"])
def test_components_that_end_before_anybody_waits_for_them_have_their_say(batch: Batch, code: int) -> None:
    job = batch.folder / "job.sh"
    job.write_text(job.read_text().replace("\ncode=0\n", "\nsleep 1\ncode=0\n"))
    for model in "ab":
        (batch.folder / f"at-once.{model}").touch()
    assert batch.start().wait(20) == code


@pytest.mark.parametrize("batch", [(0, 6)], indirect=True)
def test_a_component_that_fails_at_once_leaves_the_other_alone(batch: Batch) -> None:
    (batch.folder / "at-once.b").touch()
    process = batch.start()
    batch.wait_for("a")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    assert process.wait(20) == 6
    assert batch.output("a")[1:] == ["a told"]
    assert len(batch.output("b")) == 1


@pytest.mark.parametrize("gap", [0, 0.001, 0.003])
def test_a_second_signal_changes_nothing(tmp_path: Path, gap: float) -> None:
    """Many times, for whether the second one arrives while the first is told on is up to chance."""
    batches = []
    for number in range(15):
        (folder := tmp_path / str(number)).mkdir()
        batches.append(Batch(folder, (0, 0)))
    with contextlib.ExitStack() as ends:
        for each in batches:
            each.start()
            ends.callback(each.end)
        for each in batches:
            each.wait_for("a", "b")
            assert each.process
            each.process.terminate()
            time.sleep(gap)
            each.process.terminate()
        assert [each.process.wait(20) for each in batches if each.process] == [0] * len(batches)


def test_a_signal_before_all_are_launched_reaches_every_component(batch: Batch) -> None:
    job = batch.folder / "job.sh"
    held, up = (f"until [ -e {name} ]; do sleep 0.01; done\n" for name in ("told", "ready.b"))
    text = job.read_text().replace('launches+=("$!")\n', f'launches+=("$!")\n{held}', 1)
    job.write_text(text.replace("trap 'kill", f"{up}trap 'kill"))
    process = batch.start()
    batch.wait_for("a")
    process.terminate()
    (batch.folder / "told").touch()
    assert process.wait(20) == 0
    assert [batch.output(model)[1:] for model in "ab"] == [["a told"], ["b told"]]
