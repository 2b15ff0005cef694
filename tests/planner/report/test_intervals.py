"""Intervals and what stands behind them: only where they are known, and then wherever a figure is shown."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from msgspec.structs import replace
from tests.planner.emit.conftest import LOAD, candidate, pair, plan_of, workers

from aegis.cli.plan.ranking import give_ranking
from aegis.planner.answer import Candidate, interval
from aegis.planner.difference import FIGURES
from aegis.planner.estimator import ESTIMATORS
from aegis.planner.everywhere import Ranked
from aegis.planner.plan import Plan, plan
from aegis.planner.problem import Parallel, Tuning
from aegis.planner.report.binding import report as binding
from aegis.planner.report.csv import best_csv
from aegis.planner.report.curves import picture_of
from aegis.planner.report.document import builtins
from aegis.planner.report.picture import picture
from aegis.planner.report.steps import report as steps_report
from aegis.planner.report.steps import summary
from aegis.planner.report.table import html
from aegis.planner.report.text import report
from aegis.planner.report.words import between, figure, support
from aegis.planner.single import Asked, Estimate, estimate, worker_of
from aegis.planner.task import WorkerQuestion
from aegis.planner.why import why

COLUMNS = [
    *(f"{name}_{end}" for name in ("tokens/s/gpu", "ttft", "tpot") for end in ("low", "high")),
    "measured",
]


def known(each: Candidate, *, spread: float = 0.096, measured: int = 41) -> Candidate:
    return replace(each, spread=spread, ttft_spread=0.14, tpot_spread=0.07, measured=measured)


def ranked(*best: Candidate) -> Plan:
    """A plan with one experiment that has several configurations."""
    whole = plan_of(best[0])
    return replace(whole, answers=(replace(whole.answers[0], best=best, frontier=best),))


FIRST = known(candidate(tokens_per_s_gpu=893.0))
EQUAL = known(candidate(workers(parallel=Parallel(tp=2)), tokens_per_s_gpu=890.0), spread=0.2, measured=0)
WORSE = known(candidate(workers(parallel=Parallel(tp=8)), tokens_per_s_gpu=500.0))


@pytest.mark.parametrize(
    ("value", "spread", "said"),
    [
        (893.0, 0.096, "893 ms, 790-1010"),
        (12345.6, 0.1, "12300 ms, 10900-14000"),
        (8.0712, 0.07, "8.07 ms, 7.38-8.83"),
        (8.0712, 0.0, "8.07 ms"),
        (99.96, 0.1, "100 ms, 87.9-114"),
    ],
)
def test_a_figure_has_the_digits_that_its_interval_leaves(value: float, spread: float, said: str) -> None:
    assert figure(value, " ms", spread) == said


def test_what_stands_behind_a_figure() -> None:
    assert support(41, 0.1) == "from 41 measured deployments like it"
    assert support(1, 0.1) == "from 1 measured deployment like it"
    assert support(0, 0.2342) == "no measured deployment like it: ±35 %"
    assert support(3, 0.0) == between(5.0, 0.0) == ""


def test_the_headline_has_the_interval_and_what_is_behind_it() -> None:
    shown = report(plan_of(FIRST))
    assert "Best Experiment Chosen: agg at 893 tokens/s/gpu, 790-1010\n" in shown
    assert (
        "Best Throughput: 893 tokens/s/gpu, 790-1010 (80 %), from 41 measured deployments like it\n" in shown
    )
    assert "- TTFT: 255ms, 213-305\n" in shown
    assert "- TPOT: 18.6ms, 17.0-20.3\n" in shown
    assert "no measured deployment like it: ±29 %" in report(plan_of(EQUAL))


def test_two_modes_that_cannot_be_told_apart_are_not_called_better() -> None:
    split = known(replace(pair(), tokens_per_s_gpu=900.0))
    assert "chosen: disagg at 900 tokens/s/gpu, 796-1020 (cannot be told apart from agg)" in report(
        plan_of(split, FIRST)
    ).replace("Chosen", "chosen")


def test_tables_have_the_interval_and_mark_the_equals_of_the_first() -> None:
    shown = report(ranked(FIRST, EQUAL, WORSE))
    assert "= cannot be told apart from the first" in shown
    lines = [line.split("|") for line in shown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:5]] for line in lines]
    assert cells == [
        ["Rank", "tokens/s/gpu", "80 %", "measured"],
        ["1", "893.00", "790-1010", "41"],
        ["2", "890.00", "689-1150 =", "0"],
        ["3", "500.00", "442-565", "41"],
    ]
    missed = ranked(FIRST, EQUAL)
    nearest = replace(missed, answers=(replace(missed.answers[0], meets_targets=False),))
    assert "told apart" not in report(nearest)  # ranked by another figure
    page = html(ranked(FIRST, EQUAL))
    assert "<td>689-1150 =</td>" in page
    assert "cannot be told apart" in page


def test_without_intervals_nothing_of_them_is_shown() -> None:
    bare = plan_of(candidate())
    shown = report(bare) + html(bare) + best_csv(bare.experiments[0], bare.answers[0])
    assert not re.search(r"80 %|measured|_low|told apart", shown)
    (curve,) = picture_of(bare).curves
    assert "low" not in builtins(curve.points[0])


def test_columns_of_intervals_come_last_and_only_where_they_are_known() -> None:
    plain, rows = (ranked(*each).to_dict()["agg"] for each in ((candidate(),), (candidate(), FIRST)))
    assert list(rows[0]) == list(plain[0])
    assert list(rows[1]) == [*plain[0], *COLUMNS]
    low, high = interval(FIRST.ttft, FIRST.ttft_spread)
    assert (rows[1]["ttft_low"], rows[1]["ttft_high"]) == (round(low, 3), round(high, 3))
    mixed = ranked(candidate(), FIRST)
    table = list(csv.DictReader(io.StringIO(best_csv(mixed.experiments[0], mixed.answers[0]))))
    assert list(table[0]) == [*plain[0], *COLUMNS]
    assert (table[0]["measured"], table[1]["measured"]) == ("", "41")
    assert set(COLUMNS) <= set(FIGURES)  # what `plan diff` takes for results, not for settings


def test_json_of_structs_has_intervals_in_place_of_spreads() -> None:
    found = builtins(plan_of(FIRST, candidate()).answers)
    certain, bare = (each["best"][0] for each in found)
    assert certain["tokens_per_s_gpu_high"] == pytest.approx(893.0 * 893.0 / certain["tokens_per_s_gpu_low"])
    assert list(certain)[-2:] == ["tpot_high", "measured"]
    assert not {"spread", "ttft_spread", "tpot_spread"} & set(certain)
    assert not {"spread", "measured", "ttft_low"} & set(bare)
    json.dumps(found)


def test_pictures_show_the_band() -> None:
    (curve,) = picture_of(ranked(FIRST, EQUAL)).curves
    assert curve.points[0].low == pytest.approx(893 * 893 / (curve.points[0].high or 0), rel=1e-4)
    assert ("80 %", "790-1010") in curve.points[0].facts
    assert picture(ranked(FIRST, EQUAL)).startswith(b"\x89PNG")


def test_reasons_say_which_splits_cannot_be_told_apart() -> None:
    found = plan("LLAMA3.1_8B", 8, "h100_sxm", isl=2000, osl=300, tpot=20, estimator="aic-0.12")
    plain = binding(why(found))
    assert "told apart" not in plain
    vague = replace(
        found,
        answers=tuple(
            replace(
                each,
                best=tuple(known(one, spread=3.0) for one in each.best),
                candidates=tuple(known(one, spread=3.0) for one in each.candidates),
            )
            for each in found.answers
        ),
    )
    assert "tokens/s of all GPUs, which cannot be told apart" in binding(why(vague))


@pytest.fixture(scope="module")
def estimated() -> Estimate:
    asked = Asked(
        worker=WorkerQuestion(model="LLAMA3.1_8B", system="h100_sxm"),
        split=Parallel(moe_ep=0),
        load=LOAD,
        tuning=Tuning(),
        estimator=ESTIMATORS["aic-0.12"],
    )
    return estimate(worker_of(asked), LOAD, Tuning(), batch=8)


def test_an_estimate_has_its_intervals_beside_its_figures(estimated: Estimate) -> None:
    sure = replace(
        estimated, ttft=200.0, tokens_per_s_gpu=893.0, spread=0.096, ttft_spread=0.14, tpot_spread=0.07
    )
    lines = [line.split() for line in steps_report(sure).splitlines()]
    assert ["TTFT", "200.00", "ms", "167-239"] in lines
    assert ["tokens/s/gpu", "893.00", "790-1010"] in lines
    assert "  80 % of the time between these, no measured deployment like it: ±13 %\n" in steps_report(sure)
    head, rows = summary([sure, estimated])
    assert head[-2:] == ("80 %", "MEASURED")
    assert [row[-2:] for row in rows] == [("790-1010", "0"), ("", "")]


def test_an_estimate_without_intervals_has_none(estimated: Estimate) -> None:
    assert not re.search(r"80 %|measured", steps_report(estimated))
    head, rows = summary([estimated])
    assert "MEASURED" not in head
    assert len(rows[0]) == len(head)
    assert not {"spread", "measured", "ttft_low"} & set(builtins(estimated))


def test_systems_that_cannot_be_told_apart_from_the_first_are_marked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plans = {"a": FIRST, "b": EQUAL, "c": WORSE, "d": candidate(tokens_per_s_gpu=100.0)}
    give_ranking([Ranked(system=name, plan=plan_of(each)) for name, each in plans.items()], as_json=False)
    head, *rows = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert head[:4] == ["SYSTEM", "TOKENS/S/GPU", "80 %", "MEASURED"]
    assert [row[2:4] for row in rows[:3]] == [["790-1010", "41"], ["689-1150 =", "0"], ["442-565", "41"]]
    give_ranking([Ranked(system="d", plan=plan_of(plans["d"]))], as_json=False)
    assert "80 %" not in capsys.readouterr().out
