"""What is left over of deployments, read at another place."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegis.planner.estimator import ESTIMATORS
from aegis.planner.problem import Load, Parallel, Tuning
from aegis.planner.silicon.crossed import outside, unproven
from aegis.planner.silicon.fit import rows
from aegis.planner.silicon.fitted import Errors, fitted
from aegis.planner.silicon.kriging import (
    LEVELS,
    Kernel,
    Neighbours,
    Place,
    Residual,
    Table,
    group,
)
from aegis.planner.silicon.measurements import Figure
from aegis.planner.silicon.mechanism import share_of_prefill, spread_of_tables
from aegis.planner.silicon.predict import Prediction, Workers, placed, predict
from aegis.planner.silicon.whole import left_over
from aegis.planner.single import Asked, estimate, worker_of
from aegis.planner.systems import load_system
from aegis.planner.task import WorkerQuestion

HERE = Place(
    mode="agg",
    backend="vllm",
    kind="hopper",
    system="h200_sxm",
    model="LLAMA 32 4096 0",
    formats="fp8 fp8",
    split="1",
    version="1",
)
KERNEL = Kernel(same=(0.01,) * len(LEVELS), alike=(0.01,) * len(LEVELS), lengths=(1.0,) * 5, noise=0.01)
AT = (3.0, 7.0, 6.0, 0.0, 0.0)
LEFT = st.floats(-1, 1)


PLACES = st.sampled_from(
    [HERE, replace(HERE, version="2"), replace(HERE, system="h100_sxm"), replace(HERE, backend="sglang")]
)
RESIDUALS = st.lists(
    st.builds(
        lambda place, users, left: Residual(id="", place=place, at=(users, *AT[1:]), left=left),
        PLACES,
        st.floats(0, 7),
        LEFT,
    ),
    min_size=1,
    max_size=12,
)


def read(residuals: list[Residual], place: Place = HERE, at: tuple[float, ...] = AT) -> tuple[float, float]:
    mean, spread = Neighbours(KERNEL, Table(residuals), range(len(residuals))).read(place, np.array([at]))
    return float(mean[0]), float(spread[0])


def test_where_nothing_was_measured_nothing_is_corrected_and_little_is_sure() -> None:
    figure = Figure(Errors(kernels={"agg": KERNEL}, residuals=()))
    mean, spread = figure.read(HERE, np.array([AT]), float)
    assert (mean[0], figure.of_its_kind(HERE)) == (0.0, 0)
    assert spread[0] == pytest.approx(math.sqrt(0.01 * 2 * len(LEVELS) + 0.01))
    far = read([Residual(id="", place=replace(HERE, mode="disagg"), at=AT, left=1.0)])
    assert far == pytest.approx((0.0, spread[0]))


@given(LEFT)
def test_a_deployment_that_was_measured_often_is_known(left: float) -> None:
    mean, spread = read([Residual(id="", place=HERE, at=AT, left=left)] * 50)
    assert mean == pytest.approx(left, abs=0.01)
    assert spread == pytest.approx(math.sqrt(0.01), rel=0.02)  # the noise of a measurement remains


@given(RESIDUALS, st.randoms())
def test_the_order_of_rows_says_nothing(residuals: list[Residual], random: object) -> None:
    shuffled = list(residuals)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert read(shuffled) == pytest.approx(read(residuals), abs=1e-9)


@given(RESIDUALS, LEFT)
def test_another_measurement_never_makes_it_less_sure(residuals: list[Residual], left: float) -> None:
    more = [*residuals, Residual(id="", place=HERE, at=AT, left=left)]
    assert read(more)[1] <= read(residuals)[1] + 1e-9


def test_the_nearer_deployment_says_more() -> None:
    near = [Residual(id="", place=replace(HERE, version="2"), at=AT, left=0.5)]
    far = [Residual(id="", place=replace(HERE, backend="sglang"), at=AT, left=0.5)]
    assert 0 < read(far)[0] < read(near)[0] < 0.5


def test_a_system_that_nobody_measured_is_less_sure() -> None:
    residuals = [Residual(id="", place=HERE, at=AT, left=0.5)]
    for place, factor in ((HERE, 1.0), (replace(HERE, system="x100"), 3.0)):
        spreads = [
            Neighbours(kernel, Table(residuals), [0]).read(place, np.array([AT])).spread[0]
            for kernel in (KERNEL, replace(KERNEL, further=3.0))
        ]
        assert spreads[1] == pytest.approx(factor * spreads[0])


def test_what_was_fitted_is_what_the_planner_leaves_over_today() -> None:
    """Else the tables, the models or the formulas have changed: run scripts/fit_silicon.py."""
    known = fitted()
    chosen = [row for row in rows() if row.mode == "agg"][::160] + [
        row for row in rows() if row.mode == "disagg"
    ][::160]
    for errors, found in zip((known.ttft, known.tpot), left_over(chosen, known), strict=True):
        before = {each.id: each.left for each in errors.residuals}
        assert {each.id: each.left for each in found} == pytest.approx(
            {each.id: before[each.id] for each in found}, abs=2e-3
        )


@pytest.mark.parametrize("figure", ["ttft", "tpot"])
def test_no_correction_that_is_taken_is_worse_than_none(figure: str) -> None:
    """Each deployment of the fit half as the other deployments predict it, against the prediction without what was fitted."""
    errors: Errors = getattr(fitted(), figure)
    assert unproven(errors.kernels, errors.residuals) == errors.unproven
    corrected = np.abs(
        outside(errors.kernels, errors.residuals)[0] - [each.left for each in errors.residuals]
    )
    none = np.abs([each.left + each.share for each in errors.residuals])
    groups = [group(each.place) for each in errors.residuals]
    assert set(errors.unproven) < set(groups)
    for name in set(groups) - set(errors.unproven):
        rows = [number for number, each in enumerate(groups) if each == name]
        assert corrected[rows].mean() <= none[rows].mean(), name


def test_where_corrections_are_unproven_there_are_none() -> None:
    fit, spread = fitted(), 1.3
    known = replace(fit, ttft=replace(fit.ttft, unproven={"disagg, trtllm, blackwell": spread}))
    chosen = [
        row
        for row in rows()
        if (row.mode, row.backend, row.decode_workers > 0) == ("disagg", "trtllm", True)
        and row.system.startswith("b")
    ][:5]
    assert chosen
    workers, alone = Workers(known), Workers()
    for row, said in zip(chosen, predict(chosen, known=known), strict=True):
        found, prompt = placed(row, workers), Load(isl=row.isl, osl=row.osl)
        assert row.prefill is not None
        corrected, plain = (float(each.of(row, row.prefill).prefill(1, row.isl)) for each in (workers, alone))
        assert isinstance(said, Prediction)
        assert said.ttft == pytest.approx(found.ttft * plain / corrected)
        assert said.ttft_spread == spread
        assert share_of_prefill(alone.of(row, row.prefill), prompt) == 0
    # Rows of a site's own say more than none.
    ttft, tpot = left_over(chosen, known)
    for said in predict(chosen, known=known, site_ttft=ttft, site_tpot=tpot):
        assert isinstance(said, Prediction)
        assert said.ttft_spread < spread


def test_groups_whose_corrections_are_worse_than_none_are_found() -> None:
    """Deployments of one group that contradict each other, beside one whose deployments agree."""
    splits = [str(number) for number in range(6)]
    agree = [
        Residual(id=split, place=replace(HERE, split=split), at=AT, left=0.5, share=-0.1) for split in splits
    ]
    contrary = replace(HERE, backend="sglang")
    contradict = [
        Residual(id=split, place=replace(contrary, split=split), at=AT, left=sign * 0.5, share=-sign * 0.5)
        for split, sign in zip(splits, (1, -1) * 3, strict=True)
    ]
    assert list(unproven({"agg": KERNEL}, [*agree, *contradict])) == ["agg, sglang, hopper"]


@given(RESIDUALS, RESIDUALS)
def test_modes_say_nothing_of_each_other(one: list[Residual], other: list[Residual]) -> None:
    kernels = {"agg": KERNEL, "disagg": replace(KERNEL, noise=0.5)}
    moved = [replace(each, place=replace(each.place, mode="disagg")) for each in other]
    together = outside(kernels, [*one, *moved])
    alone = outside(kernels, one), outside(kernels, moved)
    for both, *apart in zip(together, *alone, strict=True):
        assert both == pytest.approx(np.concatenate(apart))


def test_intervals_of_systems_without_tables_hold_what_these_may_be_off() -> None:
    measured = load_system("h100_sxm")
    estimated = replace(measured, estimated=True, uncertainty=0.4)
    assert spread_of_tables(measured) == 0
    assert math.exp(1.645 * spread_of_tables(estimated)) == pytest.approx(1.4)  # in nine of ten cases

    def spread(system: str) -> float:
        asked = Asked(
            worker=WorkerQuestion(model="Qwen/Qwen3-32B", system=system, backends=("vllm",)),
            split=Parallel(tp=4),
            load=Load(isl=2000, osl=300),
            tuning=Tuning(),
            estimator=ESTIMATORS["aegis"],
        )
        return estimate(worker_of(asked), asked.load, asked.tuning, batch=16).ttft_spread

    tables = spread_of_tables(load_system("a100_40"))
    assert tables > 0
    assert spread("a100_40") == pytest.approx(math.hypot(spread("a100_sxm"), tables), rel=0.01)


def test_what_nobody_measured_of_a_version_makes_its_steps_less_sure() -> None:
    known = fitted()
    measured, new = (known.mechanism("trtllm", "hopper", version).host for version in ("1.0.0rc3", "9.9"))
    assert measured.step != new.step
    assert (measured.spread, new.step) == (0.0, known.mechanisms["trtllm"]["hopper"].host.step)
    assert 0.3 < new.spread < 2
    base = next(
        row for row in rows() if (row.backend, row.version, row.mode) == ("trtllm", "1.0.0rc3", "agg")
    )
    there, elsewhere = predict([base, replace(base, version="9.9")])
    assert isinstance(there, Prediction)
    assert isinstance(elsewhere, Prediction)
    assert elsewhere.tpot_spread > there.tpot_spread
