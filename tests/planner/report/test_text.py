"""What the terminal shows: the guide's text, to the digit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from aegis.planner.plan import Plan, plan
from aegis.planner.report.table import boxed
from aegis.planner.report.text import report

GUIDE_TABLES = Path(__file__).parents[2] / "fixtures" / "aiconfigurator" / "2025-seed" / "guide-tables.txt"


@pytest.fixture(scope="module")
def example() -> Plan:
    return plan("QWEN3_32B", 32, "h200_sxm", isl=3000, osl=512, ttft=1000, tpot=10, estimator="guide")


def test_the_head_is_the_guide_s(example: Plan) -> None:
    assert """\
  Input Configuration & SLA Target:
    Model: QWEN3_32B (is_moe: False)
    Total GPUs: 32
    Best Experiment Chosen: disagg at 913.82 tokens/s/gpu (1.43x better)
  ----------------------------------------------------------------------------
  Overall Best Configuration:
    - Best Throughput: 913.82 tokens/s/gpu
    - User Throughput: 123.92 tokens/s/user
    - TTFT: 202.65ms
    - TPOT: 8.07ms
""" in report(example)


def test_the_tables_are_the_guide_s(example: Plan) -> None:
    shown = report(example)
    tables = shown[shown.index("disagg Top") :].splitlines()[:-1]
    wanted = GUIDE_TABLES.read_text().splitlines()
    assert len(tables) == len(wanted)
    # In the last row the guide took another one of two prefill splits with the same throughput.
    differing = [line for line, other in zip(tables, wanted, strict=True) if line != other]
    assert [line.split("|")[1:4] for line in differing] in (
        [],
        [["  5   ", "    434.77    ", "     145.12    "]],
    )


def test_the_plot_marks_the_best_point(example: Plan) -> None:
    shown = report(example)
    assert " xx disagg best" in shown
    assert "tokens/s/gpu" in shown
    assert re.search(r"•x", shown)


def test_without_a_terminal_there_are_no_escapes(example: Plan) -> None:
    assert "\033" not in report(example)
    assert "\033[1m913.82\033[0m" in report(example, color=True)


def test_names_do_nothing_to_a_terminal(example: Plan) -> None:
    hostile = tuple(replace(each, model_name="a\x1b[31m\nb") for each in example.experiments)
    shown = report(replace(example, experiments=hostile))
    assert "\x1b" not in shown
    assert r"Model: a\x1b[31m\nb (is_moe: False)" in shown


def test_wide_tables_go_on_below_on_a_narrow_terminal(example: Plan) -> None:
    lines = report(example, width=100, color=True).splitlines()
    tables = [re.sub(r"\033\[\d+m", "", line) for line in lines if line.startswith(("|", "+"))]
    assert max(map(len, tables)) <= 100
    assert sum(line.startswith("| Rank") for line in tables) == 5


def test_experts_show_their_own_split() -> None:
    shown = report(plan("Qwen/Qwen3-30B-A3B", 8, "h200_sxm", tpot=30, ttft=3000))
    assert "(is_moe: True)" in shown
    assert re.search(r"\| +\d \(=\dx1x\d\) +\| +tp\dpp1dp\detp\dep\d ", shown)


def test_what_misses_the_targets_says_so() -> None:
    shown = report(plan("QWEN3_32B", 1, "h200_sxm", tpot=5))
    assert "which misses the targets" in shown
    assert "agg Top Configurations: (none meets the targets; sorted by TPOT)" in shown
    assert "No configurations for disagg: prefill and decode take 2 GPUs at least" in shown


def test_cells_are_centred_as_in_the_guide() -> None:
    assert boxed(("ab", "c"), [("1", "dd"), ("22", "3")]).splitlines() == [
        "+----+----+",
        "| ab | c  |",
        "+----+----+",
        "| 1  | dd |",
        "| 22 | 3  |",
        "+----+----+",
    ]
