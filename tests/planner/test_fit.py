"""Fitting efficiency curves, and the error on a system that was left out."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from aegis.planner.fit.leave_one_out import Place, fit, held_out
from aegis.planner.fit.published import BANDS, FACTORS
from aegis.planner.fit.samples import Sample, samples
from aegis.planner.fit.solve import fit_curve
from aegis.planner.perf import work
from aegis.planner.perf.efficiency import Held, bands, efficiency, family
from aegis.planner.systems import load_system, system_names
from aegis.planner.tables.store import open_tables


@cache
def place(name: str, backend: str = "trtllm") -> Place:
    return Place(load_system(name), backend, open_tables(name, backend))  # type: ignore[arg-type]


@cache
def drawn(name: str, backend: str = "trtllm") -> list[Sample]:
    return samples(load_system(name), place(name, backend).tables)


def test_the_same_rows_are_drawn_every_time() -> None:
    tables = place("a100_sxm").tables
    first, again = (samples(load_system("a100_sxm"), tables, rows=20) for _ in range(2))
    assert [each.key for each in first] == [each.key for each in again]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.latency, other.latency)
        assert len(one.latency) <= 20


def test_a_known_law_is_found_again() -> None:
    """Rows that a curve made are fitted: the fit says the same of them."""
    true = next(each for each in efficiency().curves if (each.operation, each.format) == ("gemm", "bfloat16"))
    rng = np.random.default_rng(0)
    made = []
    for name in ("a100_sxm", "h100_sxm", "b200_sxm", "l40s"):
        system = load_system(name)
        m, n, k = (2.0 ** rng.uniform(low, 14, 300) for low in (0, 8, 8))
        done = work.gemm(system, "bfloat16", m, n, k)
        columns = [np.broadcast_to(each, m.shape) for each in done.machine]
        done = work.Work(done.compute, done.memory, done.shape, tuple(columns))
        made.append(Sample(system, "trtllm", "gemm", "bfloat16", done, true.latency(done, family(system))))
    found = fit_curve(made)
    for each in made:
        error = found.latency(each.work, family(each.system)) / each.latency - 1
        assert np.quantile(np.abs(error), 0.9) < 0.03


def test_the_stored_curves_are_those_that_the_shipped_tables_give() -> None:
    stored = efficiency().curve("gemm", "bfloat16", "trtllm")
    group = [
        each for name in stored.systems for each in drawn(name) if each.key == ("gemm", "bfloat16", "trtllm")
    ]
    again = fit_curve(group)
    for each in group:
        now, then = (curve.latency(each.work, family(each.system)) for curve in (again, stored))
        np.testing.assert_allclose(now, then, rtol=0.02)


def test_the_stored_error_of_a_system_is_found_again() -> None:
    """One engine, one system: curves fitted on the others are as far off as the file says."""
    name = "h200_sxm"
    others = [
        each for each in system_names() if not load_system(each).estimated and each not in {name, "b60"}
    ]
    wanted = {"gemm", "generation_attention"}
    curves = fit(each for other in others for each in drawn(other) if each.operation in wanted)
    mine = [each for each in drawn(name) if each.operation in wanted]
    found = {each.what: each for each in held_out(place(name), mine, curves, known=True)}
    for what in wanted:
        assert found[what] == stored_error(name, what)


def stored_error(name: str, what: str) -> Held:
    (found,) = (
        each
        for each in efficiency().held_out
        if (each.system, each.backend, each.what) == (name, "trtllm", what)
    )
    return found


@pytest.mark.parametrize("name", sorted(BANDS))
def test_the_uncertainty_of_a_system_is_the_band_of_its_kind(name: str) -> None:
    assert load_system(name).uncertainty == pytest.approx(bands(efficiency())[BANDS[name]], abs=0.02)


def test_every_estimated_system_has_a_band_and_every_factor_a_source() -> None:
    assert set(BANDS) == {name for name in system_names() if load_system(name).estimated}
    assert efficiency().factors == FACTORS
    assert all(each.source for each in FACTORS.values())


def test_an_outlier_hardly_moves_a_fit() -> None:
    group = [each for each in drawn("h200_sxm") if each.key == ("gemm", "bfloat16", "trtllm")]
    (one,) = group
    broken = one.latency.copy()
    broken[::25] *= 30
    clean, moved = (
        fit_curve([each]).latency(one.work, "hopper") for each in (one, one._replace(latency=broken))
    )
    assert np.median(np.abs(moved / clean - 1)) < 0.05
