"""What is left over of deployments, read at another place."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegis.planner.silicon.fit import rows
from aegis.planner.silicon.fitted import Errors, fitted
from aegis.planner.silicon.kriging import (
    LEVELS,
    Kernel,
    Neighbours,
    Place,
    Places,
    Residual,
    Table,
    covariance,
    shared,
)
from aegis.planner.silicon.measurements import Figure
from aegis.planner.silicon.predict import predict
from aegis.planner.silicon.whole import left_over

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
    figure = Figure(Errors(kernel=KERNEL, residuals=()))
    mean, spread = figure.read(HERE, np.array([AT]))
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
def test_no_engine_on_any_class_of_systems_is_worse_than_without(figure: str) -> None:
    """Each deployment of the fit half as the other deployments predict it, against the uncorrected prediction."""
    errors: Errors = getattr(fitted(), figure)
    places, at = [each.place for each in errors.residuals], np.array([each.at for each in errors.residuals])
    left = np.array([each.left for each in errors.residuals])
    own = covariance(errors.kernel, shared(*[Places(places).codes] * 2), at, at)
    own[np.diag_indices(len(own))] += errors.kernel.noise / np.array(
        [each.weight for each in errors.residuals]
    )
    inverse = np.linalg.inv(own)
    solved = inverse @ left
    groups: dict[str, list[int]] = {}
    for row, place in enumerate(places):
        groups.setdefault(repr(replace(place, version="")), []).append(row)
    corrected = np.zeros(len(left))
    for group in groups.values():
        corrected[group] = np.linalg.solve(inverse[np.ix_(group, group)], solved[group])
    by_id = {row.id: row for row in rows()}
    asked = [by_id[each.id] for each in errors.residuals]
    kinds: dict[tuple[str, ...], list[int]] = {}
    for row, place in enumerate(places):
        if place.mode == "agg":
            kinds.setdefault((place.backend, place.kind), []).append(row)
    for kind, group in kinds.items():
        some = group[:: max(len(group) // 40, 1)]
        plain = predict([asked[each] for each in some], corrected=False)
        before = [
            abs(math.log(getattr(said, figure) / getattr(asked[each], figure)))
            for each, said in zip(some, plain, strict=True)
            if not isinstance(said, str)
        ]
        assert np.abs(corrected[some]).mean() <= np.mean(before), kind
