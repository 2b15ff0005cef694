"""The fit of what remains: how alike the errors of like deployments are, by the likelihood of what was left over."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from aegis.planner.silicon.crossed import by_mode, outside_in_mode
from aegis.planner.silicon.kriging import LEVELS, Kernel, Places, covariance, shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from aegis.planner.operations import Floats
    from aegis.planner.silicon.kriging import Matrix, Residual

LENGTHS: Final = (1.5, 1.0, 1.0, 1.0, 1.0)  # of users, isl, osl, GPUs, attention groups: e-foldings
_FREEDOM: Final = 4.0  # of Student's t distribution, by which outliers lose weight
_ROUNDS: Final = 3  # of weighing and fitting
_STEPS: Final = 25
_SAMPLE: Final = (
    1100  # rows, of whole deployments, that variances are fitted to: more change little and take long
)
_START, _LEAST, _MOST = np.log(0.01), -12.0, 2.0  # ln of a variance
# What need not vary does not: a variance is thought to be that share of the mean square of all that is left over, or less (exponential).
# Without it three engines, or two models, are made to differ by what happens to be left of a few rows. By cross-validation:
# with a tenth or a fortieth models and systems that are left out are predicted as well, with more of it they are further off.
_SMALL: Final = 1 / 20
_HELD: Final = 1.2816  # standard deviations to either side that hold 80 % of a normal distribution
_SHARE: Final = 0.8


class _Terms(NamedTuple):
    parts: list[Matrix]  # whose weighted sum is the covariance
    values: Floats
    usual: float  # variance


def fit_kernels(residuals: Sequence[Residual]) -> tuple[dict[str, Kernel], list[Residual]]:
    """Return the variances by mode, and the residuals with their weights.

    Modes have variances of their own: what is seldom alike in one (disaggregated rows whose workers are not told) says nothing of
    another.
    """
    kernels, weighed = {}, list(residuals)
    for mode, numbers in sorted(by_mode(residuals).items()):
        kernels[mode], found = _fit_kernel([residuals[each] for each in numbers])
        for number, each in zip(numbers, found, strict=True):
            weighed[number] = each
    return kernels, weighed


def _fit_kernel(residuals: Sequence[Residual]) -> tuple[Kernel, list[Residual]]:
    from scipy.optimize import minimize  # noqa: PLC0415 - of the development environment

    chosen = _sample(residuals)
    terms = _terms([residuals[each] for each in chosen])
    logarithms = np.full(len(terms.parts) + 1, _START)
    weights = np.ones(len(residuals))
    for _ in range(_ROUNDS):
        logarithms = minimize(
            _unlikely,
            logarithms,
            args=(terms, weights[chosen]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(_LEAST, _MOST)] * len(logarithms),
            options={"maxiter": _STEPS},
        ).x
        kernel = _kernel(logarithms)
        error, variance = _left_out(kernel, residuals, weights)
        weights = np.minimum(
            (_FREEDOM + 1) / (_FREEDOM + error**2 / (variance + kernel.noise / weights)), 1.0
        )
    error, variance = _left_out(kernel, residuals, weights)
    # What is new is as sure as any measurement, not as one that lost weight.
    widened = factor_that_holds(np.abs(error) / spread_of(kernel, variance))
    return replace(kernel, widened=widened), _weighed(residuals, np.round(weights, 3))


def spread_of(kernel: Kernel, variance: Floats) -> Floats:
    """Return the standard deviation of a measurement whose error is known so well."""
    spread: Floats = kernel.widened * np.sqrt(variance + kernel.noise)
    return spread


def factor_that_holds(sizes: ArrayLike) -> float:
    """Return the factor on standard deviations with which 80 % of errors, in such deviations, lie within 80 %."""
    return round(float(np.quantile(np.asarray(sizes), _SHARE)) / _HELD, 3)


def _weighed(residuals: Sequence[Residual], weights: Floats) -> list[Residual]:
    return [replace(each, weight=float(weight)) for each, weight in zip(residuals, weights, strict=True)]


def _left_out(kernel: Kernel, residuals: Sequence[Residual], weights: Floats) -> tuple[Floats, Floats]:
    """Return by how much the others miss what is left over of each row, and the variance of what they say."""
    said, variance = outside_in_mode(kernel, _weighed(residuals, weights), lambda each: each.id)
    return said - [each.left for each in residuals], variance


def _kernel(logarithms: Floats) -> Kernel:
    variances = [round(float(each), 8) for each in np.exp(logarithms)]
    return Kernel(
        same=tuple(variances[:-1:2]), alike=tuple(variances[1:-1:2]), lengths=LENGTHS, noise=variances[-1]
    )


def _sample(residuals: Sequence[Residual]) -> list[int]:
    """Return some rows: whole deployments, in an order that has nothing to do with them."""
    groups: dict[str, list[int]] = {}
    for row, each in enumerate(residuals):
        groups.setdefault(repr(each.place), []).append(row)
    chosen: list[int] = []
    for name in sorted(groups, key=lambda name: sha256(name.encode()).digest()):
        if len(chosen) < _SAMPLE:
            chosen += groups[name]
    return sorted(chosen)


def _coded(residuals: Sequence[Residual]) -> tuple[NDArray[np.int64], Matrix]:
    """Return the places by numbers, (levels, n), and the loads, (n, features)."""
    return Places(each.place for each in residuals).codes, np.array([each.at for each in residuals])


def _terms(residuals: Sequence[Residual]) -> _Terms:
    codes, at = _coded(residuals)
    common = shared(codes, codes)
    parts: list[Matrix] = []
    one = Kernel(same=(0.0,), alike=(1.0,), lengths=LENGTHS, noise=0.0)
    for level in range(len(LEVELS)):
        parts += [common[level].astype(np.float64), covariance(one, common[level : level + 1], at, at)]
    values = np.array([each.left for each in residuals])
    return _Terms(parts, values, _SMALL * float(np.mean(values**2)))


def _inverse(logarithms: Floats, terms: _Terms, weights: Floats) -> Matrix:
    variances = np.exp(logarithms)
    whole = sum(variance * part for variance, part in zip(variances[:-1], terms.parts, strict=True))
    inverse: Matrix = np.linalg.inv(whole + np.diag(variances[-1] / weights))
    return inverse


def _unlikely(logarithms: Floats, terms: _Terms, weights: Floats) -> tuple[float, Floats]:
    """Return how unlikely the values are (-ln of their density, without constants), and its slope."""
    inverse = _inverse(logarithms, terms, weights)
    solved = inverse @ terms.values
    variances = np.exp(logarithms)
    slope_of = inverse - np.outer(solved, solved)
    slope = [
        0.5 * variance * float(np.vdot(slope_of, part))
        for variance, part in zip(variances[:-1], terms.parts, strict=True)
    ]
    slope.append(0.5 * variances[-1] * float((np.diag(slope_of) / weights).sum()))
    cost = 0.5 * float(terms.values @ solved) - 0.5 * float(np.linalg.slogdet(inverse)[1])
    prior = np.append(variances[:-1], 0.0) / terms.usual
    return cost + float(prior.sum()), np.array(slope) + prior
