"""The targets that a sweep is run for: many, so that the whole Pareto frontier is seen and not one point of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis.planner.estimator import Estimator
    from aegis.planner.problem import Load, Targets

# ms; planner-model, section 6
TPOTS = (*range(1, 20), *range(20, 300, 5))
# Shares of a request's whole time that its first token may take: ms, and fractions where those ms lie outside.
TTFTS = (300, 400, 500, 600, 800, 1000, 1200, 1400, 1600, 2000, 3000, 5000, 8000)
FRACTIONS = (0.1, 0.2, 0.3, 0.5, 0.7)
_FINER = tuple(0.95 * 0.85**step for step in range(40))  # fractions, down to 1/600


class Pair(NamedTuple):
    """One pair of targets, ms."""

    ttft: float
    tpot: float


def pairs(load: Load, targets: Targets, estimator: Estimator) -> tuple[Pair, ...]:
    """Return the pairs that a sweep keeps the best configurations for."""
    if targets.request_latency is not None:
        whole = targets.request_latency
        finer = _FINER if "user-tpot-in-sweep" in estimator.corrections else ()
        return _splits(whole, targets.ttft, load.osl, more=[whole * each for each in finer])
    tpots = {float(each) for each in TPOTS}
    if "user-tpot-in-sweep" in estimator.corrections and math.isfinite(targets.tpot):
        tpots.add(targets.tpot)
    return tuple(Pair(targets.ttft, tpot) for tpot in sorted(tpots))


def _splits(budget: float, ttft: float, osl: int, *, more: Iterable[float] = ()) -> tuple[Pair, ...]:
    """Return ways to spend a request's time on its first token and on the others; `more` first tokens, ms."""
    fractions = [budget * each for each in FRACTIONS]
    tried = {float(each) for each in TTFTS}
    tried |= {each for each in fractions if not TTFTS[0] <= each <= TTFTS[-1]}
    tried |= {each for each in more if each <= ttft}
    tried.add(0.95 * budget if math.isinf(ttft) else ttft)
    return tuple(
        Pair(first, (budget - first) / max(osl - 1, 1)) for first in sorted(tried) if 0 < first < budget
    )
