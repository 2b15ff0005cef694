"""What changed between two measurements, and what is noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegis.bench.compare import CHIEF, Change, compare
from aegis.bench.measurements import FIGURES, Measured, Measurement, load
from aegis.bench.report import Result, as_json, csv_text
from aegis.bench.sweep.document import write
from aegis.errors import ConfigError, NotFoundError
from tests.bench.sweeps import QUESTION, TARGETS, figures, point, sweep

RECORDED = Path(__file__).parents[1] / "fixtures" / "vllm"


def once(
    value: float, error: float | None = 0.01, samples: int = 5, name: str = "output_throughput"
) -> Measured:
    errors = {} if error is None else {name: error * value}
    measurement = Measurement(figures={name: value}, errors=errors, samples=samples if errors else 0)
    return Measured(name="x", loads={"concurrency 8": measurement})


def change(before: Measured, after: Measured) -> Change:
    (found,) = compare(before, after).changes
    return found


def test_more_throughput_is_better_and_more_latency_worse() -> None:
    assert change(once(100), once(120)).verdict == "better"
    assert change(once(100), once(80)).verdict == "worse"
    slower = change(once(100, name="mean_ttft_ms"), once(150, name="mean_ttft_ms"))
    assert slower.verdict == "worse"
    assert slower.loss == pytest.approx(0.5)
    assert change(once(100), once(80)).loss == pytest.approx(0.2)
    assert change(once(100), once(120)).loss == 0


@given(value=st.floats(1, 1e6), seed=st.integers(0, 2**32 - 1), samples=st.integers(3, 12))
def test_what_is_the_same_but_for_noise_is_hardly_ever_a_change(
    value: float, seed: int, samples: int
) -> None:
    draw = np.random.default_rng(seed)
    told = 0
    for _ in range(40):
        one, two = (
            (slices.mean(), slices.std(ddof=1) / samples**0.5 / slices.mean())
            for slices in value * (1 + 0.05 * draw.standard_normal((2, samples)))
        )
        found = change(
            once(float(one[0]), float(one[1]), samples), once(float(two[0]), float(two[1]), samples)
        )
        told += found.verdict != "within noise"
    assert told <= 6  # 1 % of 40, and luck


@given(factor=st.floats(0.01, 100), value=st.floats(1, 1e6))
def test_a_change_read_backwards_has_the_opposite_verdict(factor: float, value: float) -> None:
    forth, back = (
        change(*pair) for pair in ((once(value), once(value * factor)), (once(value * factor), once(value)))
    )
    opposite = {"better": "worse", "worse": "better", "within noise": "within noise"}
    if abs(np.log(factor)) > 0.1:
        assert back.verdict == opposite[forth.verdict]


def test_small_changes_and_single_runs() -> None:
    assert change(once(100, 0.0), once(100.9, 0.0)).verdict == "within noise"
    assert change(once(100, 0.0), once(101.1, 0.0)).verdict == "better"
    guess = change(once(100, None), once(104))
    assert (guess.guessed, guess.noise, guess.verdict) == (True, 0.05, "within noise")
    assert change(once(100, samples=2), once(100)).guessed


def test_failures_that_appear_are_worse() -> None:
    assert change(once(0, None, name="failed"), once(0, None, name="failed")).verdict == "within noise"
    new = change(once(0, None, name="failed"), once(2, None, name="failed"))
    assert (new.verdict, new.change, new.loss) == ("worse", None, float("inf"))
    assert change(once(2, None, name="failed"), once(0, None, name="failed")).verdict == "better"


def test_sweeps_are_compared_point_by_point(tmp_path: Path) -> None:
    one = sweep(point(1, 100), point(2, 180), point(4, 200, failed=60), targets=TARGETS)
    two = sweep(point(1, 100), point(2, 150), point(8, 150), question=replace(QUESTION, seed=3))
    for name, each in (("a", one), ("b", two)):
        (tmp_path / name).mkdir()
        write(each, tmp_path / name / "sweep.json")
    found = compare(load(tmp_path / "a"), load(tmp_path / "b" / "sweep.json"))
    worse = {(each.load, each.figure) for each in found.changes if each.verdict == "worse"}
    assert ("concurrency 2", "output_throughput") in worse
    assert ("at most", "output_throughput") in worse
    assert not {each for each in worse if each[0] == "concurrency 1"}
    assert (found.only_before, found.only_after) == ((), ("concurrency 8",))
    assert found.differently == ("seed: 0, 3",)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_runs_are_compared_endpoint_by_endpoint(form: str, tmp_path: Path) -> None:
    """The endpoints differ much, each of them changes by as much: paired, this is no noise."""
    for name, factor in (("a", 1.0), ("b", 0.9)):
        results = [
            Result(endpoint=f"h{index}:8000", model="m", figures=figures(100 * (index + 1) * factor))
            for index in range(4)
        ]
        text = csv_text(results) if form == "csv" else as_json(results)
        (tmp_path / name).write_text(text)
    found = compare(load(tmp_path / "a"), load(tmp_path / "b"), FIGURES)
    by = {each.figure: each for each in found.changes}
    assert by["output_throughput"].change == pytest.approx(-0.1)
    assert (by["output_throughput"].verdict, by["output_throughput"].guessed) == ("worse", False)
    assert by["mean_tpot_ms"].verdict == "worse"


def test_results_of_vllm_are_read() -> None:
    found = load(RECORDED / "bench_inf_detailed.json")
    result: dict[str, Any] = json.loads((RECORDED / "bench_inf_detailed.json").read_text())
    (measurement,) = found.loads.values()
    assert measurement.figures["mean_ttft_ms"] == result["mean_ttft_ms"]
    assert {name for name in CHIEF if name not in measurement.figures} <= {"mean_e2el_ms"}
    failed = load(RECORDED / "bench_badmodel.json").loads["one run"].figures
    assert set(failed) == {"failed"}  # zeros are no measurements


def test_two_models_can_be_compared() -> None:
    one, two = (
        Measured(name=name, loads={name: Measurement(figures={"output_throughput": 1.0})}) for name in "ab"
    )
    assert compare(one, two).changes[0].load == "a -> b"


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "no measurement"), ("{", "Expecting"), ("{}", "no measurement"), ("a,b\n1,2\n", "no measurement"),
     ("concurrency,throughput_noise\n1,2\n", "name the sweep.json")],
)  # fmt: skip
def test_what_is_no_measurement_is_told(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        load(file)
    assert said in f"{error.value.message} {error.value.hint}"
    with pytest.raises(NotFoundError):
        load(tmp_path / "none")
