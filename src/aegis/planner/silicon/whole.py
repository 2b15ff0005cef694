"""The whole fit: the mechanism, then what it leaves over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from aegis.errors import AegisError
from aegis.planner.silicon.crossed import apart, unproven
from aegis.planner.silicon.fit import fit_mechanism, steps
from aegis.planner.silicon.fitted import Errors, Fitted
from aegis.planner.silicon.kriging import LEVELS, Kernel, Residual
from aegis.planner.silicon.predict import Workers, placed
from aegis.planner.silicon.variances import LENGTHS, fit_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aegis.planner.silicon.deployments import Deployment
    from aegis.planner.silicon.predict import Seat

_NOTHING: Final = Errors(
    kernel=Kernel(same=(0.0,) * len(LEVELS), alike=(0.0,) * len(LEVELS), lengths=LENGTHS, noise=1.0),
    residuals=(),
)


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
    tell(f"step times of {len(deployments)} deployments")
    measured = steps(deployments, Workers())
    tell(f"mechanism, from {len(measured.tpot)}")
    mechanisms, versions = fit_mechanism(measured)
    known = Fitted(mechanisms=mechanisms, versions=versions, ttft=_NOTHING, tpot=_NOTHING)
    tell("what remains")
    ttft, tpot = left_over(deployments, known)
    if kernels is not None:
        return replace(
            known,
            ttft=_errors(kernels.ttft.kernel, ttft),
            tpot=_errors(kernels.tpot.kernel, tpot),
        )
    tell(f"variances, from {len(tpot)}")
    return replace(known, ttft=_errors(*fit_kernel(ttft)), tpot=_errors(*fit_kernel(tpot)))


def _errors(kernel: Kernel, residuals: Sequence[Residual]) -> Errors:
    return Errors(
        kernel=kernel,
        residuals=tuple(residuals),
        unproven=unproven(kernel, residuals),
        apart=apart(kernel, residuals),
    )


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
