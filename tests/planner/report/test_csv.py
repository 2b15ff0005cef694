"""CSV files, against those that were saved in the guide's time."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aegis.planner.defaults import fill
from aegis.planner.estimator import GUIDE
from aegis.planner.experiments import read_questions
from aegis.planner.plan import plan, run
from aegis.planner.report.csv import best_csv, pareto_csv

if TYPE_CHECKING:
    from aegis.planner.plan import Plan

FIXTURES = Path(__file__).parents[2] / "fixtures"
SEED = FIXTURES / "aiconfigurator" / "2025-seed"
# Of equal throughputs either prefill split may be taken; what it has:
TIED = {"ttft", "(p)parallel", "(p)tp", "(p)workers", "(p)seq/s/worker", "(p)memory"}
# One point of one recording has the same rate as another one, of a larger batch.
SAME_RATE = {
    "bs",
    "global_bs",
    "concurrency",
    "balance_score",
    "num_gen_reqs",
    "gen_tokens",
    "num_tokens",
    "memory",
}


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    file = FIXTURES / "planner" / "experiments" / "qwen3_32b_disagg_pertensor.yaml"
    return {
        "qwen32b_seed": plan(
            "QWEN3_32B", 32, "h200_sxm", isl=3000, osl=512, ttft=1000, tpot=10, estimator=GUIDE
        ),
        "qwen32b_default": plan("QWEN3_32B", 32, "h200_sxm", estimator=GUIDE),
        "pertensor": run(fill(read_questions(file, estimator=GUIDE))),
    }


def differing(text: str, recorded: Path) -> set[str]:
    """Return the columns that differ by more than a thousandth."""
    rows = list(csv.DictReader(io.StringIO(text)))
    wanted = list(csv.DictReader(recorded.read_text().splitlines()))
    assert list(rows[0]) == list(wanted[0])
    assert len(rows) == len(wanted)
    return {
        column
        for row, other in zip(rows, wanted, strict=True)
        for column in row
        if row[column] != other[column] and not near(row[column], other[column])
    }


def near(one: str, other: str) -> bool:
    try:
        return float(one) == pytest.approx(float(other), rel=1e-3)
    except ValueError:
        return False


@pytest.mark.parametrize("case", ["qwen32b_seed", "qwen32b_default", "pertensor"])
def test_files_are_those_that_were_saved(plans: dict[str, Plan], case: str) -> None:
    found = plans[case]
    for experiment, answer in zip(found.experiments, found.answers, strict=True):
        folder = SEED / case / answer.name
        allowed = TIED if experiment.mode == "disagg" else SAME_RATE
        assert differing(best_csv(experiment, answer, 3), folder / "best_config_topn.csv") <= allowed
        assert differing(pareto_csv(experiment, answer), folder / "pareto.csv") <= allowed


def test_newer_rules_have_newer_columns() -> None:
    found = plan("QWEN3_32B", 8, "h200_sxm")
    head = best_csv(found.experiments[1], found.answers[1]).partition("\n")[0].split(",")
    assert {"prefix", "request_latency", "cp"} <= set(head)
    assert "index" not in head


def test_nothing_found_is_an_empty_file() -> None:
    found = plan("QWEN3_32B", 8, "h200_sxm", tpot=0.5, strict=True)
    assert best_csv(found.experiments[0], found.answers[0]) == ""
