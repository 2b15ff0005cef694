"""The folder that a plan is written into."""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING

import msgspec
import pytest
import yaml

from aegis.errors import AegisError, ConfigError, DeploymentError
from aegis.planner.defaults import fill
from aegis.planner.emit import save
from aegis.planner.emit.names import distinct_names
from aegis.planner.experiments import read_questions
from aegis.planner.plan import Plan, plan, run
from aegis.spec.step_times import StepTimes

from .conftest import HOSTILE, candidate, pair, plan_of, workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Outcome


@pytest.fixture(scope="module")
def answered() -> Plan:
    return plan("QWEN3_32B", 32, "h200_sxm", backend="vllm", isl=3000, osl=512, tpot=20)


@pytest.fixture(scope="module")
def folder(answered: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(answered, tmp_path_factory.mktemp("results"), platform="polaris")


def tree(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_the_tree_is_the_guide_s(folder: Path) -> None:
    assert re.fullmatch(r"QWEN3_32B_h200_sxm_vllm_isl3000_osl512_ttft1000_tpot20_\d{6}", folder.name)
    files = tree(folder)
    of_top = {"agg/agg_config.yaml", "agg/node_0_run.sh", "agg/k8s_deploy.yaml", "generator_config.yaml"}
    guide = {"pareto_frontier.png", "agg/best_config_topn.csv", "agg/config.yaml", "agg/pareto.csv"}
    guide |= {f"agg/top{rank}/{name}" for rank in (1, 2, 3) for name in of_top}
    guide |= {f"disagg/top1/disagg/{name}_config.yaml" for name in ("prefill", "decode")}
    assert guide <= files
    ours = {"pareto_frontier.html", "aegis.yaml", "disagg/top1/aegis-disagg.yaml"}
    ours |= {
        f"agg/top1/{name}" for name in ("aegis.yaml", "aegis-sim.yaml", "step_times.json", "sim-nodes.yaml")
    }
    assert ours <= files
    assert not any("top4" in name for name in files)
    assert list(folder.parent.iterdir()) == [folder]  # nothing temporary is left


def test_every_file_can_be_read(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.suffix == ".yaml":
            assert list(yaml.safe_load_all(file.read_text()))
        if file.suffix == ".sh":
            assert file.stat().st_mode & 0o111
    text = (folder / "agg" / "best_config_topn.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 3
    times = msgspec.json.decode((folder / "agg" / "top1" / "step_times.json").read_bytes(), type=StepTimes)
    assert times.context_tokens > 0


def test_the_choice_stands_on_top(folder: Path, answered: Plan) -> None:
    assert answered.chosen is not None
    name = answered.experiments[answered.chosen].name
    assert (folder / "aegis.yaml").read_text() == (folder / name / "top1" / "aegis.yaml").read_text()
    assert "platform: polaris" in (folder / "aegis.yaml").read_text()


@pytest.mark.parametrize("name", ["agg", "disagg"])
def test_the_experiment_that_is_written_gives_the_same_answer(
    folder: Path, answered: Plan, name: str
) -> None:
    again = run(fill(read_questions(folder / name / "config.yaml")))
    before = next(each for each in answered.answers if each.name == name)
    assert again.answers[0].best == before.best
    assert again.answers[0].frontier == before.frontier


def test_aegis_takes_every_deployment(
    folder: Path, aegis: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AEGIS_ACCOUNT", "project")
    for file in [folder / "aegis.yaml", *folder.rglob("aegis-*.yaml")]:
        done = aegis("config", "show", "--config", str(file))
        assert done.code == 0, done.err
    assert aegis("submit", "--config", str(folder / "aegis.yaml"), "--dry-run").code == 0


def test_a_rehearsal_names_its_files_where_they_are(folder: Path) -> None:
    top = folder / "agg" / "top1"
    said = yaml.safe_load((top / "aegis-sim.yaml").read_text())
    (entry,) = said["models"]
    assert entry["engine"] == "sim"
    assert entry["extra_sim_args"][:2] == ["--step-times", str(top / "step_times.json")]
    assert said["platform"] == str(top / "sim-nodes.yaml")
    assert yaml.safe_load((top / "sim-nodes.yaml").read_text())["node"]["devices"] == 4  # those of polaris


@pytest.mark.parametrize(("version", "nested"), [("1.0.0rc6", True), ("1.3.0rc20", False)])
def test_files_have_the_form_of_the_version_that_is_named(tmp_path: Path, version: str, nested: bool) -> None:
    chosen = candidate(workers(backend="trtllm"))
    folder = save(plan_of(chosen, backend="trtllm"), tmp_path, generated_config_version=version)
    config = yaml.safe_load((folder / "agg" / "top1" / "agg" / "agg_config.yaml").read_text())
    assert ("build_config" in config) is nested


def test_hostile_names_stay_inside_the_folder(tmp_path: Path) -> None:
    chosen = candidate()
    folder = save(plan_of(chosen, model=HOSTILE, name="../../x"), tmp_path / "results")
    assert folder.parent == tmp_path / "results"
    assert [each.name for each in tmp_path.iterdir()] == ["results"]
    script = (folder / "x" / "top1" / "agg" / "node_0_run.sh").read_text()
    assert "'a b'\"'\"'c" in script


def test_names_of_experiments_are_kept_apart() -> None:
    assert distinct_names(["a", "A", "a/b", "", "..", "a-b"]) == [
        "a",
        "A-2",
        "a-b",
        "plan",
        "plan-2",
        "a-b-2",
    ]


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AegisError, match="file"):
        save(plan_of(pair()), tmp_path / "file")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_is_wrong_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no version"):
        save(plan_of(candidate()), tmp_path, generated_config_version="new")
    with pytest.raises(DeploymentError, match="unknown platform"):
        save(plan_of(candidate()), tmp_path, platform="arora")
    assert list(tmp_path.iterdir()) == []


def test_the_page_carries_the_exact_configurations(folder: Path, answered: Plan) -> None:
    text = (folder / "pareto_frontier.html").read_text()
    data = json.loads(re.search(r'id="plan">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert [len(each["points"]) for each in data["curves"]] == [
        len(each.frontier) for each in answered.answers
    ]
