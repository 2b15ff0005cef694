"""Two measurements side by side: the change of every figure, and whether it is more than noise. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
from msgspec import Struct

from aegis.bench.measurements import FIGURES, THROUGHPUTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.bench.measurements import Measured, Measurement

Verdict = Literal["better", "worse", "within noise"]

CHIEF: Final = (
    *("request_throughput", "output_throughput", "mean_ttft_ms", "p99_ttft_ms"),
    *("mean_tpot_ms", "p99_tpot_ms", "mean_e2el_ms", "failed"),
)
LEAST: Final = 0.01  # no change below this is told from noise, however sure the figures are
GUESS: Final = 0.05  # noise of what was measured once
FEW: Final = 3  # samples that say something of noise
# Student's t for 99 % on both sides, by degrees of freedom.
T: Final = (
    *((1, 63.66), (2, 9.92), (3, 5.84), (4, 4.60), (5, 4.03), (6, 3.71), (7, 3.50), (8, 3.36)),
    *((9, 3.25), (10, 3.17), (12, 3.05), (15, 2.95), (20, 2.85), (30, 2.75), (60, 2.66)),
)


class Change(Struct, frozen=True, kw_only=True):
    """One figure of one load, before and after."""

    load: str
    figure: str
    before: float
    after: float
    change: float | None  # relative; None: there was nothing before
    noise: float  # changes up to this happen by chance in 99 of 100 cases
    guessed: bool  # the noise is a guess: too few samples
    verdict: Verdict

    @property
    def loss(self) -> float:
        """By how much it is worse than before, relative and beyond its noise; 0: it is not."""
        if self.verdict != "worse":
            return 0.0
        if self.change is None:
            return math.inf
        return -self.change if self.figure in THROUGHPUTS else self.change


class Comparison(Struct, frozen=True, kw_only=True):
    """Two files: the changes, and what only one of them has."""

    before: str
    after: str
    changes: tuple[Change, ...]
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    differently: tuple[str, ...] = ()  # what was asked differently

    def count(self, verdict: Verdict) -> int:
        """Return how many figures came to a verdict."""
        return sum(each.verdict == verdict for each in self.changes)


def compare(before: Measured, after: Measured, figures: Sequence[str] = CHIEF) -> Comparison:
    """Return what changed in the loads that both have."""
    both = [name for name in before.loads if name in after.loads]
    if not both and len(before.loads) == len(after.loads) == 1:  # another model, or none was named
        (one, first), (two, second) = *before.loads.items(), *after.loads.items()
        changes = tuple(_changes(f"{one} -> {two}", first, second, figures))
        return Comparison(before=before.name, after=after.name, changes=changes)
    return Comparison(
        before=before.name,
        after=after.name,
        changes=tuple(
            change
            for name in both
            for change in _changes(name, before.loads[name], after.loads[name], figures)
        ),
        only_before=tuple(name for name in before.loads if name not in after.loads),
        only_after=tuple(name for name in after.loads if name not in before.loads),
        differently=tuple(
            f"{name}: {value!r}, {after.question[name]!r}"
            for name, value in before.question.items()
            if name in after.question and after.question[name] != value
        ),
    )


def _changes(load: str, before: Measurement, after: Measurement, figures: Sequence[str]) -> Iterator[Change]:
    for name in (name for name in FIGURES if name in figures):
        if name in before.figures and name in after.figures:
            yield _change(load, name, before, after)


def _change(load: str, name: str, before: Measurement, after: Measurement) -> Change:
    one, two = before.figures[name], after.figures[name]
    noise = _noise(name, before, after) if name != "failed" else 0.0
    limit = LEAST if name == "failed" else max(GUESS if noise is None else noise, LEAST)
    relative = two / one - 1 if one else None if two else 0.0
    return Change(
        load=load,
        figure=name,
        before=one,
        after=two,
        change=relative,
        noise=limit,
        guessed=noise is None,
        verdict=_verdict(name, two - one, relative, limit),
    )


def _verdict(name: str, difference: float, relative: float | None, noise: float) -> Verdict:
    if not difference or (relative is not None and abs(relative) <= noise):
        return "within noise"
    return "better" if (difference > 0) == (name in THROUGHPUTS) else "worse"


def _noise(name: str, before: Measurement, after: Measurement) -> float | None:
    """Return how much a figure changes by chance, relative; None: nothing is known of it."""
    if (paired := _ratios(name, before, after)) is not None:
        return _t(len(paired) - 1) * float(np.std(paired, ddof=1)) / math.sqrt(len(paired))
    parts = [_error(name, before), _error(name, after)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    squares = [part.relative**2 for part in known]
    if not sum(squares):
        return 0.0
    # Welch: the degrees of freedom of a sum.
    freedom = sum(squares) ** 2 / sum(part.relative**4 / part.degrees for part in known)
    return _t(freedom) * math.sqrt(sum(squares)) * after.figures[name] / before.figures[name]


class Error(NamedTuple):
    """A standard error, relative to its figure."""

    relative: float
    degrees: int  # of freedom


def _ratios(name: str, before: Measurement, after: Measurement) -> list[float] | None:
    """Return after / before of the endpoints that both have; None: too few."""
    found = [
        after.endpoints[endpoint][name] / figures[name]
        for endpoint, figures in before.endpoints.items()
        if figures.get(name) and name in after.endpoints.get(endpoint, {})
    ]
    return found if len(found) >= FEW else None


def _error(name: str, measurement: Measurement) -> Error | None:
    """Return how sure a figure is; None: nobody knows."""
    value = measurement.figures[name]
    if measurement.endpoints:
        values = [each[name] for each in measurement.endpoints.values() if name in each]
        if len(values) < FEW:
            return None
        return Error(float(np.std(values, ddof=1)) / math.sqrt(len(values)) / value, len(values) - 1)
    if name not in measurement.errors or measurement.samples < FEW:
        return None
    return Error(measurement.errors[name] / value, measurement.samples - 1)


def _t(freedom: float) -> float:
    return next((value for degrees, value in reversed(T) if degrees <= freedom), T[0][1])
