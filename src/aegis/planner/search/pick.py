"""The choice: which of the candidates are shown, and in which order."""

from __future__ import annotations

import math
from itertools import compress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from aegis.planner.answer import interval

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from aegis.planner.answer import Candidate
    from aegis.planner.estimator import Rules
    from aegis.planner.problem import Targets

TOP_N = 5
_OF_60_PERCENT: Final = (
    0.2533  # standard deviations above the mean that leave 60 % of a normal distribution below
)

_T = TypeVar("_T")


class Known(NamedTuple):
    """A figure, the more the better, and how well it is known."""

    value: float
    spread: float  # standard deviation of its logarithm; 0: not known


def told_apart(better: Known, other: Known) -> bool:
    """Tell whether a figure is really the larger one with a probability of 60 % or more.

    Errors are taken as independent. Figures whose spread is not known are taken as they are.
    """
    if not (better.spread and other.spread):
        return True
    spread = math.hypot(better.spread, other.spread)
    return better.value >= other.value * math.exp(_OF_60_PERCENT * spread)


def by_confidence(items: Iterable[_T], known: Callable[[_T], Known]) -> list[_T]:
    """Order items by their figures, the largest first, as far as these can be told apart.

    Those that cannot be told apart from the best of those left are ordered by the low end of their intervals, so that
    of two equals the better known comes first. Where no spread is known the order is that of the figures; items whose
    figures are the same stay in their order.
    """
    left = sorted(items, key=lambda each: (-known(each).value, known(each).spread))
    if not any(known(each).spread for each in left):
        return left
    ordered: list[_T] = []
    while left:
        best, *others = left
        apart = [told_apart(known(best), known(each)) for each in others]
        equals = [best, *compress(others, (not each for each in apart))]
        ordered += sorted(equals, key=lambda each: -interval(*known(each))[0])
        left = list(compress(others, apart))
    return ordered


class Picked(NamedTuple):
    """The best candidates, ranked; where nothing meets the targets, those that come nearest."""

    best: tuple[Candidate, ...]
    meets_targets: bool


def pick(
    candidates: Sequence[Candidate],
    *,
    total_gpus: int,
    targets: Targets,
    rules: Rules,
    top_n: int = TOP_N,
) -> Picked:
    """Rank candidates by the output tokens/s of all GPUs, those left over counted as idle.

    Under the guide's rules every point of the frontier is ranked (so `candidates` is that); under the current ones
    only the best of each split (aggregated: the worker's; disaggregated: the decode worker's). Throughputs that cannot
    be told apart are ranked by what is certain of them.
    """
    there = [each for each in candidates if each.replicas(total_gpus)]
    meeting = [each for each in there if meets(each, targets)]
    if meeting:
        ranked = sorted(
            meeting, key=lambda each: (-each.cluster_throughput(total_gpus), _next_best(each, targets))
        )
        shown = ranked if rules == "guide" else _shown(ranked, total_gpus)
        return Picked(tuple(shown[:top_n]), meets_targets=True)
    if rules == "guide" or targets.strict:
        return Picked((), meets_targets=False)
    by_throughput = sorted(there, key=lambda each: -each.cluster_throughput(total_gpus))
    nearest = sorted(_first_of(by_throughput, _split), key=lambda each: excess(each, targets))
    return Picked(tuple(nearest[:top_n]), meets_targets=False)


def known(candidate: Candidate, total_gpus: int) -> Known:
    """Return the output tokens/s of all GPUs."""
    return Known(candidate.cluster_throughput(total_gpus), candidate.spread)


def meets(candidate: Candidate, targets: Targets) -> bool:
    """Tell whether a candidate keeps to the target that replaces or is the time per output token.

    The time to the first token bounds the sweep already.
    """
    if targets.request_latency is not None:
        return candidate.request_latency <= targets.request_latency
    return candidate.tpot <= targets.tpot


def excess(candidate: Candidate, targets: Targets) -> float:
    """Return the figure that a target bounds: request latency or time per output token, ms."""
    return candidate.tpot if targets.request_latency is None else candidate.request_latency


def _next_best(candidate: Candidate, targets: Targets) -> float:
    """Return what decides among equal throughputs: the faster user."""
    if targets.request_latency is not None:
        return candidate.request_latency
    return -candidate.tokens_per_s_user


def _shown(ranked: Sequence[Candidate], total_gpus: int) -> list[Candidate]:
    """Return the best of each split. Batches of the same workers err by the same factor: between them throughput decides."""

    def sure(of: Iterable[Candidate]) -> list[Candidate]:
        return by_confidence(of, lambda each: known(each, total_gpus))

    of_split: dict[Hashable, list[Candidate]] = {}
    for each in _first_of(ranked, _workers):
        of_split.setdefault(_split(each), []).append(each)
    return sure(sure(equal)[0] for equal in of_split.values())


def _first_of(ranked: Iterable[Candidate], kind: Callable[[Candidate], Hashable]) -> list[Candidate]:
    """Return the first of each kind."""
    first: dict[Hashable, Candidate] = {}
    for each in ranked:
        first.setdefault(kind(each), each)
    return list(first.values())


def _workers(candidate: Candidate) -> Hashable:
    return tuple((each.system, each.backend, each.version, each.parallel) for each in candidate.workers)


def _split(candidate: Candidate) -> Hashable:
    return candidate.workers[-1].parallel
