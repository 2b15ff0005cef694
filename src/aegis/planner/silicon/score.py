"""How far predictions are from what was measured: errors, bias, order, and whether intervals hold. Pure."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from msgspec import Struct

from aegis.planner.answer import interval
from aegis.planner.silicon.deployments import copies, flaw, in_fit_half, throughput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aegis.planner.operations import Floats
    from aegis.planner.silicon.deployments import Deployment
    from aegis.planner.silicon.predict import Prediction

Figure: TypeAlias = Literal["tpot", "ttft", "throughput"]

FIGURES: Final[tuple[Figure, ...]] = ("tpot", "ttft", "throughput")
LEAST: Final = 5  # configurations of a model and a system that have an order worth a number


class Outcome(NamedTuple):
    """One measured deployment, and what was said of it."""

    row: Deployment
    said: Prediction

    def measured(self, figure: Figure) -> float:
        """Return ms, or output tokens/s of a GPU."""
        return _figure(self.row, figure, self.row.ttft, self.row.tpot)

    def predicted(self, figure: Figure) -> float:
        """Return the same as `measured` has it."""
        return _figure(self.row, figure, self.said.ttft, self.said.tpot)

    def holds(self, figure: Figure) -> bool:
        """Tell whether the 80 % interval holds what was measured."""
        spread = {
            "tpot": self.said.tpot_spread,
            "ttft": self.said.ttft_spread,
            "throughput": self.said.spread,
        }
        low, high = interval(self.predicted(figure), spread[figure])
        return low <= self.measured(figure) <= high


class Errors(Struct, frozen=True, kw_only=True):
    """Errors of one figure over some rows; all of them shares of what was measured."""

    median: float  # of |predicted / measured - 1|
    mean: float
    bias: float  # median of predicted / measured, less 1: below 0, more was measured than predicted
    held: float  # share of rows within the 80 % interval


class Score(Struct, frozen=True, kw_only=True):
    """What predictions of some rows are worth."""

    rows: int
    tpot: Errors
    ttft: Errors
    throughput: Errors  # output tokens/s of a GPU
    order: float | None  # `order` by model and system; None: too few configurations


class Counted(Struct, frozen=True, kw_only=True):
    """Which rows count, and why others do not."""

    rows: tuple[Deployment, ...]
    of: int  # rows that there are of what is asked for
    left_out: dict[str, int]  # by rule
    copies: int  # of a measurement in the fit half


def counted(rows: Iterable[Deployment], wanted: Callable[[Deployment], bool] = lambda _: True) -> Counted:
    """Return the rows that may be scored of those that are wanted; of no use for a fit, which takes its half alone."""
    rows = tuple(rows)
    again = {row.id for row in copies(rows)}
    asked = [row for row in rows if wanted(row)]
    flaws = {row.id: found for row in asked if (found := flaw(row))}
    fair = [row for row in asked if row.id not in flaws]
    return Counted(
        rows=tuple(row for row in fair if row.id not in again),
        of=len(asked),
        left_out=dict(Counter(flaws.values()).most_common()),
        copies=sum(row.id in again for row in fair),
    )


def of_test_half(row: Deployment) -> bool:
    """Tell whether a row tests what was chosen by the others."""
    return not in_fit_half(row.id)


def score(outcomes: Sequence[Outcome]) -> Score:
    """Return the errors over some rows, at least one."""
    found = {figure: _errors(outcomes, figure) for figure in FIGURES}
    return Score(rows=len(outcomes), order=order(outcomes), **found)


def by_group(
    outcomes: Iterable[Outcome], key: Callable[[Deployment], tuple[str, ...]]
) -> dict[tuple[str, ...], list[Outcome]]:
    """Return outcomes by what a key makes of their rows, sorted by it."""
    ordered = sorted(outcomes, key=lambda each: key(each.row))
    return {name: list(group) for name, group in groupby(ordered, key=lambda each: key(each.row))}


def order(
    outcomes: Iterable[Outcome], key: Callable[[Deployment], tuple[str, ...]] | None = None
) -> float | None:
    """Return how well tokens/s of a GPU order the configurations of each group: the mean of rank correlations, by rows.

    Args:
        outcomes: of any models and systems.
        key: what a group has in common (default: model and system); groups below LEAST rows say nothing.
    """
    groups = by_group(outcomes, key or (lambda row: (row.model, row.system))).values()
    told = [group for group in groups if len(group) >= LEAST]
    if not told:
        return None
    each = [rank_correlation(*_pairs(group, "throughput")) for group in told]
    return float(np.average(each, weights=[len(group) for group in told]))


def rank_correlation(one: Floats, other: Floats) -> float:
    """Return Spearman's correlation: that of ranks, equal values sharing the mean of theirs. 0 where one side is all equal."""
    first, second = (ranks - ranks.mean() for ranks in (_ranks(one), _ranks(other)))
    size = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / size if size else 0.0


def _ranks(values: Floats) -> Floats:
    _, which, times = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(times) - (times - 1) / 2)[which]
    return ranks


def _errors(outcomes: Sequence[Outcome], figure: Figure) -> Errors:
    predicted, measured = _pairs(outcomes, figure)
    error = np.abs(predicted / measured - 1)
    return Errors(
        median=float(np.median(error)),
        mean=float(error.mean()),
        bias=float(np.median(predicted / measured)) - 1,
        held=float(np.mean([each.holds(figure) for each in outcomes])),
    )


def _pairs(outcomes: Iterable[Outcome], figure: Figure) -> tuple[Floats, Floats]:
    predicted, measured = np.array(
        [(each.predicted(figure), each.measured(figure)) for each in outcomes], dtype=np.float64
    ).T
    return predicted, measured


def _figure(row: Deployment, figure: Figure, ttft: float, tpot: float) -> float:
    return {"tpot": tpot, "ttft": ttft, "throughput": throughput(row, ttft, tpot)}[figure]
