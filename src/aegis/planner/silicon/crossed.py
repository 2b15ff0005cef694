"""Cross-validation within the fit half: what is left over of deployments as the others predict it, and where that is worse than nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from aegis.planner.silicon.kriging import Places, covariance, group, shared

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from aegis.planner.operations import Floats
    from aegis.planner.silicon.kriging import Kernel, Residual

_LIKE_ITS_MODE: Final = (
    10  # rows of the whole mode that are thought to be among those of a group, for its spread
)


def deployment(row: Residual) -> Hashable:
    """Return what rows of one deployment have in common, at whatever load and version."""
    return replace(row.place, version="")


def by_mode(residuals: Sequence[Residual]) -> dict[str, list[int]]:
    """Return which rows are of which mode: modes have nothing in common."""
    found: dict[str, list[int]] = {}
    for number, each in enumerate(residuals):
        found.setdefault(each.place.mode, []).append(number)
    return found


def outside(
    kernels: Mapping[str, Kernel],
    residuals: Sequence[Residual],
    block: Callable[[Residual], Hashable] = deployment,
) -> tuple[Floats, Floats]:
    """Return what rows outside its block say of the error of each row, and the variance of that, both (rows,)."""
    mean, variance = np.zeros(len(residuals)), np.zeros(len(residuals))
    for mode, numbers in by_mode(residuals).items():
        of_mode = [residuals[each] for each in numbers]
        mean[numbers], variance[numbers] = outside_in_mode(kernels[mode], of_mode, block)
    return mean, variance


def outside_in_mode(
    kernel: Kernel, residuals: Sequence[Residual], block: Callable[[Residual], Hashable]
) -> tuple[Floats, Floats]:
    """Return the same of rows of one mode.

    One inverse knows all of it (Rasmussen and Williams 2006, 5.4.2, for single rows).
    """
    codes = Places(each.place for each in residuals).codes
    at, left = np.array([each.at for each in residuals]), np.array([each.left for each in residuals])
    noise = kernel.noise / np.array([each.weight for each in residuals])
    inverse = np.linalg.inv(covariance(kernel, shared(codes, codes), at, at) + np.diag(noise))
    solved = inverse @ left
    blocks: dict[Hashable, list[int]] = {}
    for number, each in enumerate(residuals):
        blocks.setdefault(block(each), []).append(number)
    mean, variance = np.zeros(len(left)), np.zeros(len(left))
    for inside in blocks.values():
        own = np.linalg.inv(inverse[np.ix_(inside, inside)])
        mean[inside] = left[inside] - own @ solved[inside]
        variance[inside] = np.diag(own)
    return mean, np.maximum(variance - noise, 0.0)


def unproven(kernels: Mapping[str, Kernel], residuals: Sequence[Residual]) -> dict[str, float]:
    """Return the groups where corrections of deployments that nobody measured are worse than none, with the spread of none.

    Worse by the mean of |ln(measured / predicted)|, which is what the fit makes small. Where rows are few their spread is like that of
    their mode.
    """
    corrected = np.abs(outside(kernels, residuals)[0] - [each.left for each in residuals])
    none = np.abs([each.left + each.share for each in residuals])
    modes = np.array([each.place.mode for each in residuals])
    groups = np.array([group(each.place) for each in residuals])
    found = {}
    for name in sorted(set(groups.tolist())):
        rows = groups == name
        if corrected[rows].mean() > none[rows].mean():
            of_mode = (none[modes == modes[rows][0]] ** 2).mean()
            squares = (none[rows] ** 2).sum() + _LIKE_ITS_MODE * of_mode
            found[name] = round(float(np.sqrt(squares / (rows.sum() + _LIKE_ITS_MODE))), 3)
    return found
