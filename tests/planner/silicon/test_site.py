"""What a site's own rows gain: errors of rows that are left out, by hand and by reading anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec.structs import replace

from aegis.planner.silicon.fitted import Errors
from aegis.planner.silicon.kriging import LEVELS, Kernel, Place, Residual
from aegis.planner.silicon.measurements import Figure
from aegis.planner.silicon.site import gained

if TYPE_CHECKING:
    from collections.abc import Sequence

KERNEL = Kernel(
    same=tuple(0.01 + 0.002 * level for level in range(len(LEVELS))),
    alike=tuple(0.02 - 0.001 * level for level in range(len(LEVELS))),
    lengths=(1.5, 1.0, 1.0, 1.0, 1.0),
    noise=0.002,
)
KERNELS = {"agg": KERNEL}
PLACE = Place(
    mode="agg",
    backend="vllm",
    kind="hopper",
    system="h100_sxm",
    model="a model",
    formats="fp8 ",
    split="2 1 1 1 1 1",
    version="1",
)
OTHER = replace(PLACE, split="4 1 1 1 1 1")
FAR = replace(PLACE, backend="sglang", model="another")


def rows(place: Place, left: Sequence[float], isl: float = 7.0, weight: float = 1.0) -> list[Residual]:
    return [
        Residual(id=f"{index}", place=place, at=(float(index), isl, 5.0, 0.7, 0.0), left=value, weight=weight)
        for index, value in enumerate(left)
    ]


SHIPPED = Errors(
    kernels=KERNELS,
    residuals=(
        *rows(FAR, (0.1, 0.2, 0.1)),
        *rows(replace(PLACE, system="h200_sxm"), (0.3, -0.1), weight=0.5),
    ),
)
SITE = [
    *rows(PLACE, (0.5, 0.4, 0.6)),
    *rows(OTHER, (0.3, 0.2)),
    *rows(FAR, (0.9,), isl=8.0),
    *rows(PLACE, (0.1,), isl=9.0),
]

AT = np.array([SITE[0].at])


def error(row: Residual, others: Sequence[Residual]) -> float:
    """By reading the row's place anew, without it."""
    read = Figure(SHIPPED, others).read(row.place, np.array([row.at]), float)
    return abs(float(np.exp(read.mean[0] - row.left)) - 1)


def test_errors_are_those_of_plans_without_the_row() -> None:
    found = gained(SHIPPED, SITE)
    for index, row in enumerate(SITE):
        others = [each for each in SITE if each is not row]
        elsewhere = [each for each in SITE if each.place != row.place]
        assert found[index] == pytest.approx([error(row, ()), error(row, others), error(row, elsewhere)])


def test_rows_of_ones_own_help_where_all_of_them_say_the_same() -> None:
    before, loads, deployments = gained(SHIPPED, [*rows(PLACE, (0.5, 0.5, 0.5)), *rows(OTHER, (0.5, 0.5))]).T
    assert (loads < deployments).all()
    assert (deployments < before).all()


def test_what_a_site_measured_counts_more_than_the_same_elsewhere() -> None:
    there = Errors(kernels=KERNELS, residuals=tuple(rows(PLACE, (0.0, 0.0, 0.0))))
    own = rows(PLACE, (0.4, 0.4, 0.4))
    together = (
        Figure(Errors(kernels=KERNELS, residuals=(*there.residuals, *own))).read(PLACE, AT, float).mean[0]
    )
    assert together == pytest.approx(0.2, abs=0.01)
    assert 0.3 < Figure(there, own).read(PLACE, AT, float).mean[0] < 0.4
    # And it says something of what the site has not measured.
    assert Figure(there, own).read(FAR, AT, float).mean[0] > Figure(there).read(FAR, AT, float).mean[0] + 0.1


def test_one_row_alone_gains_nothing() -> None:
    (alone,) = gained(SHIPPED, rows(PLACE, (0.5,)))
    assert alone[1:] == pytest.approx(
        [alone[0]] * 2, abs=0.01
    )  # but what others measured counts less at a site


def test_nothing_is_known_of_nothing() -> None:
    assert gained(SHIPPED, []).shape == (0, 3)
    (alone,) = gained(replace(SHIPPED, residuals=()), rows(PLACE, (np.log(2.0),)))
    assert alone == pytest.approx([0.5] * 3)
