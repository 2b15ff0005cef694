"""Fit efficiency curves, and say what they get wrong: each system is predicted by curves fitted on all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aegis.planner.fit.published import FACTORS
from aegis.planner.fit.samples import samples
from aegis.planner.fit.solve import fit_curve
from aegis.planner.fit.steps import steps
from aegis.planner.operations import NoData
from aegis.planner.perf.efficiency import ONE_GPU, SEVERAL_GPUS, Efficiency, Held, family
from aegis.planner.problem import BACKENDS
from aegis.planner.systems import load_system
from aegis.planner.tables.store import open_tables, shipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aegis.planner.fit.samples import Sample
    from aegis.planner.operations import Floats
    from aegis.planner.perf.efficiency import Curve
    from aegis.planner.problem import Backend
    from aegis.planner.systems import System
    from aegis.planner.tables.slices import Tables

# Tables that contradict their neighbours (planner-model, section 11): their curves are borrowed from other engines.
_CONTRADICTORY = {("gemm", "fp8_block", "vllm")}
_SOURCE = "tables of NVIDIA AIConfigurator 0.12.0 (Apache-2.0)"
_HOW = (
    "ms = overhead + rounded maximum of (compute time / efficiency, memory or link time / efficiency); ln of each factor "
    "is linear in features of the shape and the machine, moved for a family of GPUs; least squares of ln(ms) on 500 rows "
    "of each operation, format, engine and system, soft-L1 loss, coefficients held near 0; "
    "held_out: the error on a system by curves fitted on all others"
)


class Place(NamedTuple):
    """One system with the tables of one engine."""

    system: System
    backend: Backend
    tables: Tables


def places() -> list[Place]:
    """Return the systems that come with tables, for each engine the newest."""
    found = sorted({(info.system, info.backend) for info in shipped(eras=("current",))})
    return [
        Place(load_system(system), backend, open_tables(system, backend))
        for system, name in found
        for backend in BACKENDS
        if backend == name
    ]


def fit(drawn: Iterable[Sample]) -> Efficiency:
    """Return curves of all operations, formats and engines that there are samples of."""
    groups: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in drawn:
        if sample.key not in _CONTRADICTORY:
            groups.setdefault(sample.key, []).append(sample)
    curves = tuple(fit_curve(group) for _, group in sorted(groups.items()))
    return Efficiency(source=_SOURCE, how=_HOW, curves=curves, factors=FACTORS)


def leave_one_out(
    where: list[Place] | None = None, say: Callable[[str], None] = lambda _: None
) -> list[Held]:
    """Return the errors on each system by curves that were fitted on all others: single operations, whole steps.

    Args:
        where: systems with tables; None: all that come with the project.
        say: told which system is next; the whole takes some twenty seconds.
    """
    where = places() if where is None else where
    drawn = {place.tables: samples(place.system, place.tables) for place in where}
    held: list[Held] = []
    for name in sorted({place.system.name for place in where}):
        say(name)
        others = [place for place in where if place.system.name != name]
        curves = fit(sample for place in others for sample in drawn[place.tables])
        families = {family(place.system) for place in others}
        for place in where:
            if place.system.name == name:
                held += held_out(place, drawn[place.tables], curves, known=family(place.system) in families)
    return held


def held_out(place: Place, drawn: Iterable[Sample], curves: Efficiency, *, known: bool) -> Iterator[Held]:
    """Yield the errors of curves on one system: of its samples by operation, of whole steps by model."""
    errors: dict[str, list[Floats]] = {}
    for sample in drawn:
        curve = _curve(curves, sample)
        if curve is not None:
            estimated = curve.latency(sample.work, family(sample.system))
            errors.setdefault(sample.operation, []).append(estimated / sample.latency - 1)
    for step in steps(place.system, place.backend, place.tables, curves):
        error = step.estimated / step.measured - 1
        errors.setdefault(step.what, []).append(error)
        errors.setdefault(ONE_GPU if step.gpus == 1 else SEVERAL_GPUS, []).append(error)
    for what, parts in sorted(errors.items()):
        error = np.concatenate(parts)
        low, bound, high = (
            round(float(each), 3)
            for each in (np.quantile(error, 0.05), np.quantile(np.abs(error), 0.9), np.quantile(error, 0.95))
        )
        median = round(float(np.median(np.abs(error))), 3)
        yield Held(place.system.name, place.backend, what, known, len(error), median, bound, low, high)


def _curve(curves: Efficiency, sample: Sample) -> Curve | None:
    if sample.key in _CONTRADICTORY:
        return None
    try:
        return curves.curve(*sample.key)
    except NoData:
        return None
