"""`aegis submit MODEL` with the options of vec-inf's `launch`, spelled as there."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from aegis.cli.submit import command
from aegis.cli.submitting import resolve_wish
from aegis.schedulers.transport import Done
from aegis.spec.document import parse_document

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.schedulers.transport import Transport
    from tests.cli.conftest import Outcome

    Run = Callable[..., Outcome]

VEC_INF = Path(__file__).parents[1] / "fixtures" / "vec-inf"
MODELS = str(VEC_INF / "models.yaml")
LLAMA = "Meta-Llama-3.1-8B-Instruct"
SBATCH = '#!/bin/sh\n[ "$1" = --version ] && { echo slurm 22.05.8; exit; }\ncat >/dev/null\necho 1057\n'


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    sbatch = programs / "sbatch"
    sbatch.write_text(SBATCH)
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def submitted(aegis: Run, *line: str) -> tuple[dict[str, Any], list[str]]:
    """Return the deployment and the directives of a dry run."""
    outcome = aegis("submit", *line, "--dry-run", "--force")
    assert outcome.code == 0, outcome.err
    match = re.search(r"<<'(AEGIS_DEPLOYMENT_*)'\n(.*?)\n\1\n", outcome.out, re.DOTALL)
    assert match
    directives = [line for line in outcome.out.splitlines() if line.startswith("#SBATCH")]
    return parse_document(match[2], "script").value, directives


def test_every_option_of_vec_inf_is_taken() -> None:
    text = (VEC_INF / "help" / "launch.txt").read_text()
    theirs = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE)) - {"--help"}
    theirs |= set(re.findall(r"^  (-\w), ", text, re.MULTILINE))
    ours = {name for param in command.params for name in param.opts}
    assert theirs <= ours
    assert len(theirs) > 24


def test_all_options_together(aegis: Run, tmp_path: Path) -> None:
    (tmp_path / "vars.env").write_text("C=3\n")
    line = f"""{LLAMA} --config {MODELS} --model-family Fam --model-variant V --partition gpu --resource-type a40
        --num-nodes 2 --gpus-per-node 4 --cpus-per-task 8 --mem-per-node 1.5T -A acct -D {tmp_path} --qos m2
        --exclude n1 --nodelist n2,n3 --bind /a:/b,/c --bind /d --time 1-00:00:00 --venv apptainer --image /i.sif
        --log-dir {tmp_path}/logs --model-weights-parent-dir /w --hf-model o/m --engine vllm
        --vllm-args '--tensor-parallel-size=4,-pp=2,--x={{"a":1,"b":[1,2]}},--y' --env A=1,B=x,y,{tmp_path}/vars.env"""
    deployment, directives = submitted(aegis, *shlex.split(line))
    (model,) = deployment.pop("models")
    told = {
        "nodes": 2,
        "gpus_per_node": 4,
        "cpus_per_node": 8,
        "mem_per_node": "1536G",
        "account": "acct",
        "work_dir": str(tmp_path),
        "qos": "m2",
        "queue": "gpu",
        "resource_type": "a40",
        "exclude": "n1",
        "nodelist": "n2,n3",
        "bind": ["/a:/b", "/c", "/d"],
        "walltime": "24:00:00",
        "image": "/i.sif",
    }
    assert told.items() <= deployment.items()
    assert model["model"] == "o/m"
    assert model["served_model_name"] == LLAMA
    assert (model["tensor_parallel_size"], model["pipeline_parallel_size"]) == (4, 2)
    assert model["extra_vllm_args"] == ["--x", '{"a":1,"b":[1,2]}', "--y"]
    assert model["env"] == {"A": "1", "B": "x,y", "C": "3"}
    assert {"#SBATCH --partition=gpu", "#SBATCH --qos=m2", "#SBATCH --gres=gpu:a40:4"} <= set(directives)
    assert any(f"{tmp_path}/logs/Fam" in line for line in directives)


def test_the_json_of_a_launch_has_vec_infs_keys(aegis: Run) -> None:
    line = [
        "submit",
        LLAMA,
        "--config",
        MODELS,
        "--hf-model",
        "o/m",
        "-A",
        "research",
        "--force",
        "--json-mode",
    ]
    outcome = aegis(*line, "--platform", "killarney", "--vllm-args", "--max-model-len=8192")
    assert outcome.code == 0, outcome.err
    ours, theirs = json.loads(outcome.out), json.loads((VEC_INF / "run" / "01_launch_venv.json").read_text())
    assert ours["slurm_job_id"] == "1057"
    assert ours["job_id"] == "slurm://1057"
    same = {
        *("model_name", "model_family", "model_variant", "model_type", "gpus_per_node", "num_nodes"),
        *("cpus_per_task", "mem_per_node", "vocab_size", "time", "resource_type", "exclude", "nodelist"),
        *("engine", "env", "account", "gres"),
    }
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert ours["engine_args"] == {"--max-model-len": "8192"}
    without = {"src_dir", "venv", "model_weights_parent_dir", "work_dir"}  # nobody said any of them
    assert set(theirs) - without <= set(ours)


def test_the_handle_is_data_and_what_it_got_is_told(aegis: Run) -> None:
    line = [LLAMA, "--config", MODELS, "--hf-model", "o/m", "-A", "research", "--force"]
    for name in ("submit", "launch"):
        outcome = aegis(name, *line, "--platform", "killarney", "--vllm-args", "--max-model-len=8192,--x")
        assert outcome.out == "slurm://1057\n"
        rows = [line.split() for line in outcome.err.splitlines()]
        for row in (["Job", "slurm://1057"], ["Account", "research"], ["Weights", "o/m"]):
            assert row in rows
        assert ["--max-model-len", "8192"] in rows
        assert ["--x"] in rows


def test_a_dry_run_of_a_launch_starts_nothing(aegis: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # and neither does one inside of an allocation
    for line in ("Qwen3-8B --scheduler local --engine sim", "Qwen3-8B --force"):
        outcome = aegis("launch", *line.split(), "--dry-run")
        assert outcome.code == 0, outcome.err
        assert outcome.out.startswith("#!/bin/bash")
    for flag in ("--dry-run", "--remote=user@nowhere.invalid"):
        outcome = aegis("launch", "--model", "m", flag)
        assert outcome.code == 2
        assert "are flags of `aegis submit`" in outcome.err


def test_warnings_go_to_stderr(aegis: Run) -> None:
    outcome = aegis("submit", "me/My-Own-1B", "--force", "--json")
    assert json.loads(outcome.out)["model_name"] == "My-Own-1B"
    assert "warning: the catalog has no `me/My-Own-1B`" in outcome.err


def test_an_unknown_model_is_not_found(aegis: Run) -> None:
    outcome = aegis("submit", "Qwen3-8b", "--dry-run")
    assert (outcome.code, outcome.out) == (4, "")
    assert "did you mean `Qwen3-8B`?" in outcome.err
    assert "did you mean `Meta-Llama-3.1-8B`?" in aegis("submit", "llama-3.1-8b", "--dry-run").err


def test_a_deployment_file_is_no_file_of_models(aegis: Run, tmp_path: Path) -> None:
    file = tmp_path / "d.yaml"
    file.write_text("model: m\n")
    outcome = aegis("submit", LLAMA, "--config", str(file))
    assert outcome.code == 2
    assert "leave the name of the model out" in outcome.err


@pytest.mark.parametrize(
    "flag", ["--vllm-args", "--hf-model", "--model-family", "--model-weights-parent-dir"]
)
def test_options_of_the_catalog_need_a_model_of_it(aegis: Run, flag: str) -> None:
    outcome = aegis("submit", "--model", "m", flag, "x")
    assert outcome.code == 2
    assert f"{flag} needs a MODEL of the catalog" in outcome.err


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["--env", "A=1,B=2"], {"A": "1", "B": "2"}),
        (["--env", "A=1", "--env", "B=2"], {"A": "1", "B": "2"}),
        (["--env", 'A="1,B=2"'], {"A": "1,B=2"}),
        (["--env", "NO_PROXY=localhost,10.0.0.1"], {"NO_PROXY": "localhost,10.0.0.1"}),
        (["--env", "vars.env,A=1"], {"A": "1", "F": "two words"}),
        (["--env", "A=1,./vars.env"], {"A": "0", "F": "two words"}),
    ],
)
def test_variables(aegis: Run, given: list[str], found: dict[str, str]) -> None:
    Path("vars.env").write_text("# mine\nexport F='two words'\nA=0\n")
    deployment, _ = submitted(aegis, "Qwen3-8B", *given)
    assert deployment["models"][0]["env"] == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A=1,none.env", "`none.env` is not NAME=VALUE, and no file that can be read"),
        (
            "LD_PRELOAD=/a.so,/b.so",
            "`/b.so` is not NAME=VALUE, and no file that can be read; quotes keep a comma",
        ),
        ("wrong.env", "wrong.env:2: this line is not NAME=VALUE"),
        ("binary.env", "no file that can be read"),
        ('A="x', "a quote is left open"),
        ("HF_TOKEN=hf_secret", "`env: HF_TOKEN` would write a secret into the job script"),
    ],
)
def test_what_is_no_variable_is_told(aegis: Run, text: str, said: str) -> None:
    Path("wrong.env").write_text("A=1\nhf_secret\n")
    Path("binary.env").write_bytes(b"\xff\xfe")
    outcome = aegis("submit", "Qwen3-8B", "--dry-run", "--env", text)
    assert outcome.code == 2
    assert said in outcome.err
    assert "hf_secret" not in outcome.err + outcome.out


HOSTILE = [
    "a b",
    "it's",
    'say "x"',
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "-x",
    "a\\b",
    "*",
    "a\nb",
    "é",
]
TEXTS = [
    *("--model-family", "--model-variant", "--partition", "--resource-type", "--mem-per-node", "--account"),
    *("--work-dir", "--qos", "--exclude", "--nodelist", "--bind", "--time", "--venv", "--log-dir"),
    *(
        "--model-weights-parent-dir",
        "--hf-model",
        "--engine",
        "--vllm-args",
        "--sglang-args",
        "--env",
        "--config",
    ),
    *("--num-nodes", "--gpus-per-node", "--cpus-per-task"),
]


@pytest.mark.parametrize("word", HOSTILE)
@pytest.mark.parametrize("flag", TEXTS)
def test_a_hostile_word_is_refused_or_stays_a_word(aegis: Run, tmp_path: Path, flag: str, word: str) -> None:
    line = ["submit", "Qwen3-8B", "--force", "--dry-run", f"{flag}={word}"]
    outcome = aegis(*line)
    assert outcome.code in {0, 2}, outcome.err
    assert "internal error" not in outcome.err
    if outcome.code == 0:
        script = tmp_path / "script.sh"
        script.write_text(outcome.out)
        checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        shell = re.sub(r"<<'(AEGIS_DEPLOYMENT_*)'\n.*?\n\1\n", "\n", outcome.out, flags=re.DOTALL)
        assert not re.search(r"^[^#']*(\$\(|`)touch pwned", shell, re.MULTILINE)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("name", [*HOSTILE, "../x", ".", "/etc", "a/b/c"])
def test_a_hostile_model_is_refused(aegis: Run, tmp_path: Path, name: str) -> None:
    outcome = aegis("submit", "--force", "--dry-run", "--", name)
    assert outcome.code in {2, 4}, outcome.out
    assert "internal error" not in outcome.err
    assert not list(tmp_path.rglob("pwned"))


class FarSide:
    """A login node at the far end of a connection, with one directory of weights."""

    name = "user@host"

    def run(self, argv: list[str], **_: object) -> Done:
        there = argv[-1] == "/far/home/weights/Qwen3-8B"
        return Done(0, "login1\nsbatch\n", "") if argv[0] == "bash" else Done(0 if there else 1, "", "")

    def home(self) -> str:
        return "/far/home"


def test_weights_of_a_remote_job_are_looked_for_where_it_will_run() -> None:
    options = {"model_weights_parent_dir": "~/weights"}
    resolved = resolve_wish("Qwen3-8B", None, options, transport=cast("Transport", FarSide()))
    assert resolved.deployment.models[0].model_source == "~/weights/Qwen3-8B"
    assert resolved.platform.name == "generic-slurm"
