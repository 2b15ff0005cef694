"""The whole fit: the mechanism, then what it leaves over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from aegis.errors import AegisError
from aegis.planner.silicon.crossed import outside, unproven
from aegis.planner.silicon.elsewhere import Elsewhere, of_new_systems
from aegis.planner.silicon.fit import fit_mechanism, steps
from aegis.planner.silicon.fitted import Errors, Fitted
from aegis.planner.silicon.kriging import Kernel, Residual
from aegis.planner.silicon.predict import Workers, placed
from aegis.planner.silicon.variances import fit_kernels, spread_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from aegis.planner.silicon.deployments import Deployment
    from aegis.planner.silicon.predict import Seat

_NOTHING: Final = Errors(kernels={}, residuals=())


def fit(
    deployments: Sequence[Deployment],
    *,
    kernels: Fitted | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Fitted:
    """Return what is fitted to measured deployments.

    Args:
        deployments: rows that may be looked at (`fit.rows`).
        kernels: whose variances are kept; default: they are fitted too.
        tell: is told what is done next.
    """
    known = _by_mechanism(deployments, tell)
    tell("what remains")
    ttft, tpot = left_over(deployments, known)
    if kernels is not None:
        return replace(
            known,
            ttft=_errors(kernels.ttft.kernels, ttft),
            tpot=_errors(kernels.tpot.kernels, tpot),
        )
    tell(f"variances, from {len(tpot)}")
    found = replace(known, ttft=_errors(*fit_kernels(ttft)), tpot=_errors(*fit_kernels(tpot)))
    return _elsewhere(deployments, found, tell)


def _by_mechanism(deployments: Sequence[Deployment], tell: Callable[[str], None]) -> Fitted:
    tell(f"step times of {len(deployments)} deployments")
    measured = steps(deployments, Workers())
    tell(f"mechanism, from {len(measured.tpot)}")
    mechanisms, versions = fit_mechanism(measured)
    return Fitted(mechanisms=mechanisms, versions=versions, ttft=_NOTHING, tpot=_NOTHING)


def _elsewhere(deployments: Sequence[Deployment], known: Fitted, tell: Callable[[str], None]) -> Fitted:
    """Return the same with what is known of systems that nobody measured: `Kernel.apart` and `Kernel.further`.

    Each system is left out of the whole fit in turn.
    """
    figures = known.ttft, known.tpot
    systems = sorted({row.system for row in deployments})
    if len(systems) == 1:  # there are no others
        return known
    rows: tuple[dict[str, list[Elsewhere]], ...] = {}, {}
    for system in systems:
        tell(f"as if nobody had measured {system}")
        others = _by_mechanism([row for row in deployments if row.system != system], lambda _: None)
        for left, errors, found in zip(left_over(deployments, others), figures, rows, strict=True):
            for mode, row in _said(left, errors, system):
                found.setdefault(mode, []).append(row)
    ttft, tpot = (
        replace(
            errors, kernels={mode: of_new_systems(each, found[mode]) for mode, each in errors.kernels.items()}
        )
        for errors, found in zip(figures, rows, strict=True)
    )
    return replace(known, ttft=ttft, tpot=tpot)


def _said(left: Sequence[Residual], errors: Errors, system: str) -> Iterator[tuple[str, Elsewhere]]:
    """Yield the modes of a system's rows, with what all others say of them."""
    weights = {each.id: each.weight for each in errors.residuals}
    weighed = [replace(each, weight=weights.get(each.id, 1.0)) for each in left]
    said, variance = outside(errors.kernels, weighed, lambda each: each.place.system)
    for each, one, other in zip(weighed, said, variance, strict=True):
        if each.place.system == system:
            spread = spread_of(errors.kernels[each.place.mode], other)
            yield each.place.mode, Elsewhere(each.place.backend, float(one), each.left, float(spread))


def _errors(kernels: dict[str, Kernel], residuals: Sequence[Residual]) -> Errors:
    return Errors(kernels=kernels, residuals=tuple(residuals), unproven=unproven(kernels, residuals))


def left_over(deployments: Iterable[Deployment], known: Fitted) -> tuple[list[Residual], list[Residual]]:
    """Return ln(measured / predicted) of TTFT and of TPOT, for the rows that can be answered."""
    workers = Workers(known)
    ttft: list[Residual] = []
    tpot: list[Residual] = []
    for row in deployments:
        try:
            found = placed(row, workers)
        except AegisError:
            continue
        ttft.append(_residual(row.id, found.first, row.ttft / found.ttft))
        tpot.append(_residual(row.id, found.further, row.tpot / found.tpot))
    return ttft, tpot


def _residual(identity: str, seat: Seat, ratio: float) -> Residual:
    at = tuple(round(float(each), 4) for each in seat.at[0])
    share = float(np.ravel(seat.share())[0])
    return Residual(
        id=identity, place=seat.place, at=at, left=round(float(np.log(ratio)), 4), share=round(share, 4)
    )
