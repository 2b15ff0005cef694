"""Factors from a measured sweep, the files it may come in, and what they do to a plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from aegis.cli import cli
from aegis.errors import ConfigError
from aegis.planner.calibrate import (
    Calibrated,
    Calibration,
    SweepRow,
    calibrate,
    read_calibrations,
    read_sweep,
    write_calibrations,
)
from aegis.planner.operations import Gemm, query
from aegis.planner.perf.analytic import Analytic
from aegis.planner.systems import load_system

if TYPE_CHECKING:
    from pathlib import Path

LEVELS = (1, 4, 16, 64)
FACTORS = st.floats(0.5, 3)


def rows(prefill: float = 1.0, decode: float = 1.0, share: float = 0.0) -> list[SweepRow]:
    """A server whose TPOT is so much prefill of others, for factors on both."""
    return [
        SweepRow(
            concurrency=level,
            ttft=100 * prefill,
            tpot=(10 + level / 8) * (prefill * share + decode * (1 - share)),
            prefill_share=share,
        )
        for level in LEVELS
    ]


@given(prefill=FACTORS, decode=FACTORS, share=st.floats(0, 0.8))
def test_factors_that_were_put_in_come_out(prefill: float, decode: float, share: float) -> None:
    found = calibrate(rows(prefill, decode, share), rows(share=share))
    assert found.prefill == pytest.approx(prefill, abs=1e-3)
    assert [factor for _, factor in found.decode] == pytest.approx([decode] * 4, abs=2e-3)
    assert found.error_after == pytest.approx(0, abs=2e-3)


def test_waiting_at_high_load_is_not_taken_for_slow_prefill() -> None:
    measured = [
        SweepRow(
            concurrency=row.concurrency, ttft=row.ttft * (10 if row.concurrency > 4 else 1.2), tpot=row.tpot
        )
        for row in rows()
    ]
    assert calibrate(measured, rows()).prefill == pytest.approx(1.2)


def test_a_plan_is_read_between_its_rows() -> None:
    plan = [SweepRow(concurrency=level, ttft=100, tpot=tpot) for level, tpot in ((1, 10), (100, 30))]
    found = calibrate([SweepRow(concurrency=10, ttft=100, tpot=40)], plan)
    assert found.decode == ((10.0, 2.0),)
    assert (found.error_before, found.error_after) == (0.25, 0.0)


def test_no_common_load_is_an_error_with_figures() -> None:
    with pytest.raises(ConfigError, match="measured at concurrency 500, planned for 1 to 64"):
        calibrate([SweepRow(concurrency=500, ttft=1, tpot=1)], rows())
    with pytest.raises(ConfigError, match="no row in the measured sweep"):
        calibrate([], rows())


def test_a_plan_with_factors_takes_longer_where_they_say() -> None:
    plain = Analytic(load_system("a40"), "vllm")
    slower = Calibrated(plain, Calibration(prefill=1.5, decode=((1, 1.0), (100, 2.0))))
    at = query(tokens=np.array([1, 10, 1000]), batch=np.array([1, 10, 1000]), length=1)
    for phase, factors in (("context", [1.5, 1.5, 1.5]), ("generation", [1.0, 1.5, 2.0])):
        gemm = Gemm(name=f"{phase}_qkv_gemm", n=4096, k=4096, quant="bfloat16")
        np.testing.assert_allclose(slower.latency(gemm, at) / plain.latency(gemm, at), factors)
    assert slower.system is plain.system
    assert "calibrated: prefill x 1.5, decode x 1 to 2" in slower.notes


SWEEP: list[dict[str, float]] = [
    {"concurrency": 1, "ttft": 100.5, "tpot": 10},
    {"concurrency": 8, "ttft": 120, "tpot": 12},
]
VLLM = [
    {
        "max_concurrency": row["concurrency"],
        "mean_ttft_ms": row["ttft"],
        "mean_tpot_ms": row["tpot"],
        "x": None,
    }
    for row in SWEEP
]


@pytest.mark.parametrize(
    "text",
    [
        "concurrency,ttft,tpot,model\n1,100.5,10,m\n8,120,12,m\n",
        json.dumps(SWEEP),
        json.dumps({"rows": SWEEP}),
        "\n".join(map(json.dumps, SWEEP)),
        json.dumps(VLLM),
        "\n".join(map(json.dumps, VLLM)) + "\n",
    ],
    ids=["csv", "list", "rows", "lines", "vllm", "vllm lines"],
)
def test_a_sweep_may_come_in_several_forms(text: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep"
    file.write_text(text)
    assert read_sweep(file) == [
        SweepRow(concurrency=1, ttft=100.5, tpot=10),
        SweepRow(concurrency=8, ttft=120, tpot=12),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("concurrency,ttft\n1,2\n", "row 1: no column tpot"),
        ("concurrency,ttft,tpot\n1,2,3\n1,x,3\n", "row 2: ttft is 'x', no number"),
        ("concurrency,ttft,tpot\n0,2,3\n", "row 1: .* greater than 0"),
        ("[1, 2]", "a list of objects is wanted"),
        ("[{", "truncated"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_told_with_its_row(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_sweep(file)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv"):
        read_sweep(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match=r"none\.json"):
        read_calibrations(tmp_path / "none.json")


def test_the_command_writes_what_a_plan_can_read(tmp_path: Path) -> None:
    measured, plan, out = tmp_path / "measured.csv", tmp_path / "plan.json", tmp_path / "c.json"
    measured.write_text("concurrency,ttft,tpot\n1,150,20\n8,160,24\n")
    plan.write_text(json.dumps(SWEEP))
    result = CliRunner().invoke(
        cli, ["plan", "calibrate", str(measured), "--plan", str(plan), "-o", str(out)]
    )
    assert result.exit_code == 0, result.output
    (found,) = read_calibrations(out)
    assert found.decode == ((1.0, 2.0), (8.0, 2.0))
    assert found.origin == "measured.csv"
    assert "mean error" in result.output
    write_calibrations(out, (found,))
    assert read_calibrations(out) == (found,)
