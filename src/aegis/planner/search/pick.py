"""The choice: which of the candidates are shown, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aegis.planner.answer import Candidate
    from aegis.planner.estimator import Rules
    from aegis.planner.problem import Parallel, Targets

TOP_N = 5


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
    only the best of each split (aggregated: the worker's; disaggregated: the decode worker's).
    """
    there = [each for each in candidates if each.replicas(total_gpus)]
    meeting = [each for each in there if meets(each, targets)]
    if meeting:
        ranked = sorted(
            meeting, key=lambda each: (-each.cluster_throughput(total_gpus), *_next_best(each, targets))
        )
        return Picked(tuple(_shown(ranked, rules)[:top_n]), meets_targets=True)
    if rules == "guide" or targets.strict:
        return Picked((), meets_targets=False)
    by_throughput = sorted(there, key=lambda each: -each.cluster_throughput(total_gpus))
    nearest = sorted(_shown(by_throughput, rules), key=lambda each: excess(each, targets))
    return Picked(tuple(nearest[:top_n]), meets_targets=False)


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


def _next_best(candidate: Candidate, targets: Targets) -> tuple[float]:
    """Return what decides among equal throughputs: the faster user."""
    if targets.request_latency is not None:
        return (candidate.request_latency,)
    return (-candidate.tokens_per_s_user,)


def _shown(ranked: Iterable[Candidate], rules: Rules) -> list[Candidate]:
    if rules == "guide":
        return list(ranked)
    best: dict[Parallel, Candidate] = {}
    for each in ranked:
        best.setdefault(each.workers[-1].parallel, each)
    return list(best.values())
