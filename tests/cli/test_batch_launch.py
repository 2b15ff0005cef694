"""`aegis batch-launch`: one job of several models, through a stand-in for sbatch."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Outcome

    Run = Callable[..., Outcome]

VEC_INF = Path(__file__).parents[1] / "fixtures" / "vec-inf"
BATCH = str(VEC_INF / "run" / "batch_config.yaml")
LLAMA, QWEN = "Meta-Llama-3.1-8B-Instruct", "Qwen2.5-7B-Instruct"
SBATCH = '#!/bin/sh\n[ "$1" = --version ] && { echo slurm 22.05.8; exit; }\ncat >"$SPOOL/script"\necho 1029\n'


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, weights, and an sbatch that keeps what it is given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    sbatch = programs / "sbatch"
    sbatch.write_text(SBATCH)
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("SPOOL", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def weights(tmp_path: Path, *names: str) -> str:
    for name in names:
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "config.json").write_text("{}")
    return str(tmp_path / "weights")


def batch_file(tmp_path: Path) -> str:
    """Return vec-inf's batch config, with weights that are there."""
    parent = weights(tmp_path, LLAMA, QWEN)
    text = (
        Path(BATCH)
        .read_text()
        .replace("num_nodes: 1", f"num_nodes: 1\n    model_weights_parent_dir: {parent}")
    )
    file = tmp_path / "batch.yaml"
    file.write_text(text)
    return str(file)


def test_a_batch_config_of_vec_inf_becomes_one_job(aegis: Run, tmp_path: Path) -> None:
    line = ["batch-launch", LLAMA, QWEN, "--batch-config", batch_file(tmp_path), "-A", "research", "--force"]
    outcome = aegis(*line, "--json-mode")
    assert outcome.code == 0, outcome.err
    ours, theirs = json.loads(outcome.out), json.loads((VEC_INF / "run" / "05_batch.json").read_text())
    for key in ("slurm_job_name", "account", "slurm_job_id"):
        assert ours[key] == theirs[key]
    assert list(ours["models"]) == list(theirs["models"])
    same = {
        *("model_name", "model_family", "model_variant", "model_type", "gpus_per_node", "num_nodes"),
        *("vocab_size", "exclude", "nodelist", "engine", "env", "het_group_id"),
    }
    for name, model in ours["models"].items():
        assert {key: model[key] for key in same} == {key: theirs["models"][name][key] for key in same}
    assert ours["models"][QWEN]["partition"] == "gpu"
    assert ours["models"][QWEN]["engine_args"] == {"--tensor-parallel-size": 2}
    script = (tmp_path / "script").read_text()
    assert script.count("#SBATCH hetjob") == 1
    assert "engine: sglang" in script
    handles = [model["job_id"] for model in ours["models"].values()]
    assert handles == ["slurm://1029+0", "slurm://1029+1"]


def test_every_model_has_its_own_endpoints_file(
    aegis: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["batch-launch", LLAMA, QWEN, "--batch-config", batch_file(tmp_path), "--force", "--json"]

    def files(*more: str) -> list[str]:
        models = json.loads(aegis(*line, *more).out)["models"]
        for model in models.values():
            Path(model["json_file"]).unlink()  # that job has the same id: it is over
        return [model["endpoints_file"] for model in models.values()]

    logs = tmp_path / "home" / ".aegis-logs"
    assert files() == [
        f"{logs}/Meta-Llama-3.1/{LLAMA}.1029+0/endpoints.txt",
        f"{logs}/Qwen2.5/{QWEN}.1029+1/endpoints.txt",
    ]
    work = Path.cwd()
    assert files("--endpoints-file", "x/../mine.list") == [
        f"{work}/mine.{LLAMA}.list",
        f"{work}/mine.{QWEN}.list",
    ]
    monkeypatch.setenv("AEGIS_ENDPOINTS_FILE", "all.txt")
    assert files() == [f"{work}/all.{LLAMA}.txt", f"{work}/all.{QWEN}.txt"]


def test_the_summary_names_every_component(aegis: Run, tmp_path: Path) -> None:
    outcome = aegis("batch-launch", LLAMA, QWEN, "--batch-config", batch_file(tmp_path), "--force")
    assert outcome.code == 0, outcome.err
    assert outcome.out == "slurm://1029\n"
    rows = [line.split() for line in outcome.err.splitlines()]
    assert ["Job", "slurm://1029"] in rows
    assert ["Job", "slurm://1029+1"] in rows
    assert ["Partition", "gpu"] in rows


def test_a_dry_run_makes_nothing(aegis: Run, tmp_path: Path) -> None:
    file = batch_file(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    outcome = aegis("batch-launch", LLAMA, QWEN, "--batch-config", file, "--force", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("#!/bin/bash")
    assert sorted(tmp_path.rglob("*")) == before


def test_models_over_several_nodes_may_take_part(aegis: Run) -> None:
    line = ["batch-launch", "Mistral-Large-Instruct-2411", "Qwen3-8B", "--dry-run", "--force"]
    script = aegis(*line).out
    assert [line for line in script.splitlines() if line.startswith("#SBATCH --nodes")] == [
        "#SBATCH --nodes=2",
        "#SBATCH --nodes=1",
    ]


def test_errors_of_all_models_come_at_once(aegis: Run, tmp_path: Path) -> None:
    outcome = aegis("batch-launch", "Qwen3-8b", "Qwen3-14b", "Qwen3-8B")
    assert outcome.code == 4
    assert "`Qwen3-8b` (did you mean `Qwen3-8B`?)" in outcome.err
    assert "`Qwen3-14b`" in outcome.err
    file = tmp_path / "m.yaml"
    file.write_text("models: {one: {gpus_per_node: x}, two: {time: 5}}\n")
    outcome = aegis("batch-launch", "one", "two", "three", "--batch-config", str(file))
    assert outcome.code == 2
    assert "`gpus_per_node` should be a whole number" in outcome.err
    assert "`5` is no walltime" in outcome.err
    assert "no model `three`" in outcome.err


def test_a_model_is_given_once(aegis: Run) -> None:
    outcome = aegis("batch-launch", "Qwen3-8B", "Qwen/Qwen3-8B")
    assert outcome.code == 2
    assert "given twice: Qwen3-8B" in outcome.err


def test_no_model_is_a_usage_error(aegis: Run) -> None:
    assert aegis("batch-launch").code == 2


def test_models_that_cannot_share_a_job_are_refused(aegis: Run, tmp_path: Path) -> None:
    entry = "{model_family: F, model_type: LLM, gpus_per_node: 1, num_nodes: 1, hf_model: o/m, work_dir: %s}"
    file = tmp_path / "m.yaml"
    file.write_text(f"models:\n  one: {entry % '/'}\n  two: {entry % '/tmp'}\n")
    line = ["batch-launch", "one", "two", "--batch-config", str(file), "--dry-run", "--force"]
    outcome = aegis(*line)
    assert outcome.code == 2
    assert f"{file}:3: `work_dir` of two is another than that of one" in outcome.err
    assert aegis(*line, "-D", "/").code == 0


def test_this_machine_takes_no_batch(aegis: Run) -> None:
    outcome = aegis("batch-launch", "Qwen3-8B", "Qwen3-14B", "--scheduler", "local", "--engine", "sim")
    assert outcome.code == 2
    assert "under `models:`" in outcome.err


@pytest.mark.parametrize("word", ["a b", "$(touch pwned)", "'; touch pwned; '", 'x"y'])
def test_hostile_words_stay_words(aegis: Run, tmp_path: Path, word: str) -> None:
    line = ["batch-launch", "Qwen3-8B", "Qwen3-14B", "--force", "--dry-run", "--log-dir", f"/tmp/{word}"]
    outcome = aegis(*line, "--env", f"A={word}")
    assert outcome.code in {0, 2}, outcome.err
    assert not list(tmp_path.rglob("pwned"))
    assert f"/tmp/{word}" not in [part.strip() for part in outcome.out.split("AEGIS_RUN_DIR=")]
