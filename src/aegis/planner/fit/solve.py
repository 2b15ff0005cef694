"""One efficiency curve from samples of several systems: least squares of ln(latency), held back where data says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aegis.planner.perf.efficiency import LEAST_COMPUTE, LEAST_MEMORY, SHARPNESS, Curve, Term, family

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.fit.samples import Sample
    from aegis.planner.operations import Floats

# How far from nought a coefficient may go before it needs evidence (standard deviations of ln), and how much evidence.
_SPREAD_SHAPE, _SPREAD_MACHINE, _SPREAD_FAMILY = 0.25, 0.1, 0.3
_EVIDENCE = 0.015
_OUTLIER = 0.3  # beyond this, ln residuals count linearly
_START = (0.3, 0.2, np.log(5e-3))  # compute, memory, overhead
_DIGITS = 4
_ITERATIONS, _ENOUGH, _STUCK = 200, 1e-6, 1e8  # at most; of the cost, in one step; damping


class _Problem(NamedTuple):
    compute: Floats  # (rows,) ln ms at the limit
    memory: Floats
    target: Floats  # ln ms
    weight: Floats
    shape: Floats  # (rows, features)
    machine: Floats  # (rows, features), then one column of 0 and 1 for each family
    families: list[str]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Coefficients of compute, of memory, of overhead."""
        work = 1 + self.machine.shape[1] + self.shape.shape[1]
        return work, work, 1 + self.machine.shape[1]


def fit_curve(samples: Sequence[Sample]) -> Curve:
    """Return the curve of samples of one operation, format and backend."""
    problem = _problem(samples)
    start = np.zeros(sum(problem.sizes))
    start[np.cumsum([0, *problem.sizes[:-1]])] = _START
    return _curve(samples, problem, np.round(_solved(problem, start), _DIGITS))


def _solved(problem: _Problem, x: Floats) -> Floats:
    """Return the coefficients of the least robust squares (Levenberg-Marquardt; Marquardt 1963)."""
    held = np.square(_held(problem))
    damping = 1e-3
    errors, slopes = _errors(x, problem)
    cost = _cost(errors, held, x)
    for _ in range(_ITERATIONS):
        # Soft-L1: an error counts squared while small, linearly beyond.
        weight = 1 / np.sqrt(1 + np.square(errors / _OUTLIER))
        curvature = slopes.T @ (slopes * weight[:, None]) + np.diag(held)
        downhill = -(slopes.T @ (weight * errors) + held * x)
        tried = x + np.linalg.solve(curvature + damping * np.diag(np.diag(curvature) + 1e-9), downhill)
        new_errors, new_slopes = _errors(tried, problem)
        new_cost = _cost(new_errors, held, tried)
        if not new_cost < cost:
            damping *= 8
            if damping > _STUCK:
                break
            continue
        gained, damping = 1 - new_cost / cost, damping / 4
        x, errors, slopes, cost = tried, new_errors, new_slopes, new_cost
        if gained < _ENOUGH:
            break
    return x


def _cost(errors: Floats, held: Floats, x: Floats) -> float:
    robust = 2 * _OUTLIER**2 * (np.sqrt(1 + np.square(errors / _OUTLIER)) - 1)
    return float(robust.sum() + held @ np.square(x))


def _problem(samples: Sequence[Sample]) -> _Problem:
    families = sorted({family(each.system) for each in samples})
    rows = [len(each.latency) for each in samples]
    which = np.repeat([families.index(family(each.system)) for each in samples], rows)

    def stacked(features: list[tuple[Floats, ...]]) -> Floats:
        return np.concatenate([np.column_stack(each) for each in features])

    machine = stacked([each.work.machine for each in samples])
    return _Problem(
        compute=np.log(np.concatenate([each.work.compute for each in samples])),
        memory=np.log(np.concatenate([each.work.memory for each in samples])),
        target=np.log(np.concatenate([each.latency for each in samples])),
        # Systems count alike, and residuals keep their own size, as the loss takes them.
        weight=np.repeat([(sum(rows) / (len(samples) * count)) ** 0.5 for count in rows], rows),
        shape=stacked([each.work.shape for each in samples]),
        machine=np.column_stack([machine, np.eye(len(families))[which]]),
        families=families,
    )


def _held(problem: _Problem) -> Floats:
    """Return what each coefficient is multiplied with to hold it near 0; bases are free."""
    constants, families = problem.machine.shape[1] - len(problem.families), len(problem.families)
    machine = [1 / _SPREAD_MACHINE] * constants + [1 / _SPREAD_FAMILY] * families
    shape = [1 / _SPREAD_SHAPE] * problem.shape.shape[1]
    held = [0.0, *machine, *shape, 0.0, *machine, *shape, 0.0, *machine]
    scale: float = len(problem.target) ** 0.5
    return _EVIDENCE * scale * np.array(held)


def _errors(x: Floats, problem: _Problem) -> tuple[Floats, Floats]:
    """Return ln(estimate / measured), weighted, and its derivatives by the coefficients."""
    work, _, _ = problem.sizes
    fixed = np.column_stack([np.ones(len(problem.target)), problem.machine])
    features = np.column_stack([fixed, problem.shape])
    inverse_compute, inverse_memory = features @ x[:work], features @ x[work : 2 * work]
    overhead = fixed @ x[2 * work :]
    compute = problem.compute + np.maximum(inverse_compute, LEAST_COMPUTE)
    memory = problem.memory + np.maximum(inverse_memory, LEAST_MEMORY)
    longer = np.logaddexp(SHARPNESS * compute, SHARPNESS * memory) / SHARPNESS
    estimate = np.logaddexp(longer, overhead)
    of_work = np.exp(longer - estimate)  # how much of the estimate is work, not overhead
    of_compute = of_work * np.exp(SHARPNESS * (compute - longer)) * (inverse_compute > LEAST_COMPUTE)
    of_memory = of_work * np.exp(SHARPNESS * (memory - longer)) * (inverse_memory > LEAST_MEMORY)
    slopes = [
        features * of_compute[:, None],
        features * of_memory[:, None],
        fixed * (1 - of_work)[:, None],
    ]
    weight = problem.weight
    return (estimate - problem.target) * weight, np.concatenate(slopes, axis=1) * weight[:, None]


def _curve(samples: Sequence[Sample], problem: _Problem, x: Floats) -> Curve:
    constants = 1 + problem.machine.shape[1] - len(problem.families)
    fixed = 1 + problem.machine.shape[1]

    def term(values: Floats) -> Term:
        return Term(
            float(values[0]),
            tuple(values[fixed:].tolist()),
            tuple(values[1:constants].tolist()),
            dict(zip(problem.families, values[constants:fixed].tolist(), strict=True)),
        )

    compute, memory, overhead = (term(each) for each in np.split(x, np.cumsum(problem.sizes)[:-1]))
    operation, number_format, backend = samples[0].key
    return Curve(
        operation=operation,
        format=number_format,
        backend=backend,
        compute=compute,
        memory=memory,
        overhead=overhead,
        systems=tuple(sorted({each.system.name for each in samples})),
    )
