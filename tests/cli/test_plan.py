"""`aegis plan`: the command line of the planner."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aegis.cli.plan import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.planner.plan import Plan
    from tests.cli.conftest import Outcome

EXAMPLES = Path(__file__).parents[1] / "fixtures" / "planner" / "experiments"
ASKED = ("plan", "default", "--model", "QWEN3_32B", "--system", "h200_sxm")


def test_the_guide_s_command_answers_as_the_guide_does(aegis: Callable[..., Outcome]) -> None:
    flags = ("--total_gpus", "32", "--ttft", "1000", "--tpot", "10", "--isl", "3000", "--osl", "512")
    outcome = aegis(*ASKED, *flags, "--estimator", "guide")
    assert (outcome.code, outcome.err) == (0, "")
    assert "Best Experiment Chosen: disagg at 913.82 tokens/s/gpu (1.43x better)" in outcome.out
    assert "disagg Top Configurations: (Sorted by tokens/s/gpu)" in outcome.out


@pytest.mark.parametrize("flag", ["--total_gpus=8", "--total-gpus=8"])
def test_flags_have_both_spellings(aegis: Callable[..., Outcome], flag: str) -> None:
    rows = json.loads(aegis(*ASKED, flag, "--top_n", "2", "--json").out)
    assert list(rows) == ["disagg", "agg"]
    assert [len(each) for each in rows.values()] == [2, 2]
    assert rows["agg"][0]["tokens/s/gpu_cluster"] >= rows["agg"][1]["tokens/s/gpu_cluster"]
    assert {"tokens/s/gpu", "tokens/s/user", "ttft", "tpot", "concurrency"} <= set(rows["agg"][0])
    assert {"(p)workers", "(d)workers", "(p)parallel", "(d)bs"} <= set(rows["disagg"][0])


def test_every_problem_names_its_flag(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis(*ASKED, "--total_gpus", "0", "--osl", "1", "--system", "h200_smx", "--ttft=-1")
    assert outcome.code == 2
    flags = [line.removeprefix("error:").split(":")[0].strip() for line in outcome.err.splitlines()]
    assert flags == ["--total-gpus", "--osl", "--ttft"]
    assert "Traceback" not in outcome.err


def test_targets_that_nothing_meets_end_in_an_error(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis(*ASKED, "--total_gpus", "1", "--tpot", "5")
    assert outcome.code == 1
    assert "which misses the targets" in outcome.out
    assert "error: no configuration meets the targets" in outcome.err
    assert re.search(r"the nearest has \d+\.\d\d ms", outcome.err)


def test_nothing_found_ends_in_an_error_and_empty_lists(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis(*ASKED, "--total_gpus", "1", "--tpot", "1", "--strict_sla", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out) == {"disagg": [], "agg": []}
    assert "error: no configuration found" in outcome.err


def test_a_plan_is_saved_where_that_is_asked_for(
    aegis: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved: dict[str, Any] = {}

    def save(plan: Plan, directory: Path, **others: Any) -> Path:
        saved.update(others, best=plan.best, directory=directory)
        return directory / "made"

    monkeypatch.setattr("aegis.planner.emit.save", save)
    outcome = aegis(
        *ASKED, "--total_gpus", "8", "--save_dir", str(tmp_path), "--generated_config_version", "1.0.0rc6"
    )
    assert outcome.code == 0
    assert outcome.err == f"saved: {tmp_path / 'made'}\n"
    assert (saved["top_n"], saved["generated_config_version"], saved["platform"]) == (3, "1.0.0rc6", None)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--platform", "aurora"), "--platform is for the files of a deployment"),
        (("--generated_config_version", "1.0.0"), "--generated-config-version is for the files"),
        (("--platform", "nowhere", "--save-dir", "x"), "unknown platform `nowhere`"),
        (("--nextn-accepted", "0.5"), "--nextn-accepted: nothing is drafted"),
        (("--nextn", "2", "--nextn-accepted", "3"), "--nextn-accepted: more tokens are accepted"),
        (("--nextn", "2", "--nextn-accepted", "nan"), "--nextn-accepted: more tokens are accepted"),
        (("--nextn", "1" + "0" * 30), "--nextn: 1" + "0" * 30 + " is too many"),
        (("--max-seq-len", "1" + "0" * 30), "is too many"),
        (("--total-gpus", "1" + "0" * 30), "is too many"),
        (("--system", "h100"), "did you mean `h100_pcie` or `h100_sxm`?"),
        (("--model", "no/where/config.json"), "there is no such file"),
        (("--model", "a\x1b[31mb"), "a\\x1b[31mb"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_is_searched(
    aegis: Callable[..., Outcome], flags: tuple[str, ...], said: str
) -> None:
    outcome = aegis(*ASKED, "--total_gpus", "8", *flags)
    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.out == ""


def test_a_folder_that_holds_no_model_is_told(aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = aegis(*ASKED, "--total_gpus", "8", "--model", str(tmp_path))
    assert outcome.code == 2
    assert "this folder has no config.json" in outcome.err


def test_a_request_that_takes_too_long_is_told_by_its_latency(aegis: Callable[..., Outcome]) -> None:
    asked = (*ASKED, "--total_gpus", "8", "--request-latency", "3000", "--estimator", "guide")
    outcome = aegis(*asked)
    assert outcome.code == 1
    assert "request latency of 3000 ms or less: the nearest has" in outcome.err
    assert "first token" not in outcome.err


def test_all_systems_are_ranked_with_what_they_compute_in(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis(*ASKED, "--total_gpus", "8", "--system", "any", "--tpot", "30")
    head, *rows = outcome.out.splitlines()
    assert head.split()[:2] == ["SYSTEM", "TOKENS/S/GPU"]
    assert "WEIGHTS" in head
    assert any(row.startswith("b200_sxm") and "nvfp4" in row for row in rows)
    assert "note: " in outcome.err
    assert "by backend" not in outcome.err


def test_experiments_of_a_file(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis("plan", "exp", "--yaml_path", str(EXAMPLES / "hetero_disagg.yaml"), "--json")
    rows = json.loads(outcome.out)
    assert list(rows) == ["exp_h200_h200", "exp_b200_h200"]
    assert rows["exp_b200_h200"][0]["(p)system"] == "b200_sxm"


def test_a_file_that_is_not_there(aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = aegis("plan", "exp", "--yaml-path", str(tmp_path / "none.yaml"))
    assert outcome.code == 2
    assert "--config" not in outcome.err


def test_tables_are_listed(aegis: Callable[..., Outcome]) -> None:
    listed = json.loads(aegis("plan", "tables", "list", "--json").out)
    assert {"h200_sxm", "gb200"} <= {each["system"] for each in listed}
    text = aegis("plan", "tables", "list", "--system", "h200_sxm").out
    assert {line.split()[0] for line in text.splitlines()} == {"SYSTEM", "h200_sxm"}
    assert "mi250x" in aegis("plan", "tables", "list").out
    assert "did you mean `h200_sxm`?" in aegis("plan", "tables", "list", "--system", "h200_smx").err


def test_tables_are_checked(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis("plan", "tables", "check", "--system", "b200_sxm")
    assert (outcome.code, outcome.err) == (0, "")
    assert "4 tables, " in outcome.out


def test_tables_of_a_system_that_is_not_there_are_told(aegis: Callable[..., Outcome]) -> None:
    for command in ("list", "check"):
        outcome = aegis("plan", "tables", command, "--system", "h200")
        assert outcome.code == 2
        assert "did you mean `h200_sxm`?" in outcome.err
    assert aegis("plan", "tables", "check", "--system", "mi250x").code == 4


def test_a_folder_without_tables_is_told(aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = aegis("plan", "tables", "import", str(tmp_path), "--out", str(tmp_path / "out"))
    assert outcome.code == 2
    assert str(tmp_path) in outcome.err


def test_progress_is_silent_for_a_second_and_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "QUIET_SECONDS", 0.0)
    with options.Progress() as progress:
        progress.tell("one")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with options.Progress() as progress:
        progress.tell("two")
    assert "two" in capsys.readouterr().err


def test_a_plan_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from aegis.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    import os\n"
        "    print(*sys.modules, len(os.listdir('/proc/self/task')), file=sys.stderr)\n"
    )
    argv = [sys.executable, "-c", program, *ASKED, "--total_gpus", "8"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    heavy = {"matplotlib", "pandas", "scipy", "pyarrow", "rich", "plotext", "asyncio", "aiohttp"}
    *modules, threads = done.stderr.split()
    assert not heavy & set(modules)
    assert threads == "1"  # numpy's own take a fifth of a cold start
