"""Rows and summaries: what is added up, what is left empty, and names that would break a CSV."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.bench.report import FIGURES, Result, as_json, csv_text, figures_of, summarise
from aegis.cli.render import printable

HOSTILE = 'a "b", $(x);\nc'


def result(endpoint: str, model: str = "m", error: str = "", **figures: float) -> Result:
    return Result(endpoint=endpoint, model=model, figures=figures, error=error)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


GOOD = (
    result("a:1", completed=10, failed=0, duration=2.0, request_throughput=5.0, p99_ttft_ms=10.0),
    result("b:1", completed=20, failed=2, duration=4.0, request_throughput=5.5, p99_ttft_ms=30.0),
)


def test_a_row_for_each_endpoint_then_the_summary() -> None:
    found = rows(csv_text([*GOOD, result("c:1", error="it broke")]))
    assert [row["endpoint"] for row in found] == ["a:1", "b:1", "c:1", *["SUMMARY"] * 4]
    assert found[2]["error"] == "it broke"
    assert found[2]["completed"] == ""
    low, high, mean, total = found[3:]
    assert [row["statistic"] for row in found[3:]] == ["min", "max", "mean", "total"]
    assert (low["p99_ttft_ms"], high["p99_ttft_ms"], mean["p99_ttft_ms"]) == ("10", "30", "20")
    assert (total["completed"], total["failed"], total["request_throughput"]) == ("30", "2", "10.5")
    assert (total["p99_ttft_ms"], total["duration"]) == ("", "")
    assert total["error"] == "1 of 3 endpoints failed"
    assert low["model"] == "m"


def test_an_endpoint_that_answered_nothing_does_not_pull_figures_down() -> None:
    dead = figures_of(
        {"completed": 0, "failed": 5, "duration": 1.0, "request_throughput": 0.0, "mean_ttft_ms": 0.0}
    )
    summary = summarise(
        [*GOOD, Result(endpoint="c:1", model="m", figures=dead, error="5 of 5 requests failed")]
    )[0]
    assert summary.min["request_throughput"] == 5.0
    assert summary.total["failed"] == 7
    assert summary.failed_endpoints == 1


def test_zeros_that_stand_for_nothing_measured_are_left_out() -> None:
    figures = figures_of({"completed": 1, "mean_tpot_ms": 0.0, "p99_tpot_ms": 0.0, "mean_ttft_ms": 1.5})
    assert figures == {"completed": 1, "mean_ttft_ms": 1.5}


def test_several_models_have_a_summary_each_and_one_together() -> None:
    found = summarise([*GOOD, result("c:1", "n", completed=1, failed=0)])
    assert [(each.model, each.endpoints) for each in found] == [("m", 2), ("n", 1), (None, 3)]
    assert found[-1].total["completed"] == 31
    assert [row["model"] for row in rows(csv_text(GOOD))] == ["m"] * 6


def test_without_any_figure_there_is_still_a_report() -> None:
    text = csv_text([result("a:1", "", "refused")])
    assert [row["endpoint"] for row in rows(text)] == ["a:1", *["SUMMARY"] * 4]
    assert not summarise([])[0].min


@given(st.text(), st.text(), st.text())
def test_any_name_is_one_cell_of_one_line(endpoint: str, model: str, error: str) -> None:
    lines = csv_text([result(endpoint, model, error)]).splitlines()
    assert len(lines) == 6
    found = next(csv.reader([lines[1]]))
    assert (found[0], found[2], found[-1]) == tuple(map(printable, (endpoint, model, error)))


@given(st.dictionaries(st.sampled_from(FIGURES), st.floats() | st.integers() | st.none() | st.text()))
def test_figures_are_numbers_whatever_is_read(said: dict[str, object]) -> None:
    assert all(isinstance(value, int | float) for value in figures_of(said).values())


def test_json_has_everything() -> None:
    whole = Result(endpoint="a:1", model=HOSTILE, figures={"completed": 1}, details={"label": None})
    found = json.loads(as_json([whole], generator="vllm"))
    assert found["generator"] == "vllm"
    assert found["endpoints"] == [
        {
            "endpoint": "a:1",
            "model": HOSTILE,
            "node": "",
            "instance": "",
            "error": None,
            "completed": 1,
            "vllm": {"label": None},
        }
    ]
    assert found["summary"][0]["total"] == {"completed": 1}


def test_large_counts_stay_exact() -> None:
    assert rows(csv_text([result("a:1", completed=12_345_678)]))[0]["completed"] == "12345678"


@pytest.mark.parametrize("value", [0.1234567, 12345.678])
def test_six_digits_of_what_was_measured(value: float) -> None:
    assert float(rows(csv_text([result("a:1", duration=value)]))[0]["duration"]) == pytest.approx(
        value, rel=1e-5
    )
