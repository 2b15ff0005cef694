"""How much of a machine a load needs: replicas, GPUs, nodes and node-hours, for candidates that meet the targets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.planner.search.pick import meets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aegis.planner.answer import Candidate
    from aegis.planner.problem import Targets


class Need(Struct, frozen=True, kw_only=True):
    """What has to be served."""

    rate: float  # requests/s that arrive
    requests: int | None = None  # in all, for the node-hours
    headroom: float = 0.0  # share of the capacity that stays free for bursts


class Sizing(Struct, frozen=True, kw_only=True):
    """What one system needs for a load."""

    candidate: Candidate
    replicas: int
    gpus: int
    nodes: int
    gpus_per_node: int
    capacity: float  # requests/s of all replicas
    hours: float | None = None  # until all requests are served, at the rate that they arrive
    node_hours: float | None = None


def size(
    candidates: Iterable[Candidate], *, need: Need, targets: Targets, gpus_per_node: int
) -> Sizing | None:
    """Return the candidate that needs the fewest nodes, then the fewest GPUs, then serves a user fastest.

    None where no candidate meets the targets.
    """
    wanted = need.rate / (1 - need.headroom)
    sizings = [
        _sizing(each, need, math.ceil(wanted / each.requests_per_s), gpus_per_node)
        for each in candidates
        if each.requests_per_s > 0 and each.ttft <= targets.ttft and meets(each, targets)
    ]
    return min(
        sizings, key=lambda each: (each.nodes, each.gpus, -each.candidate.tokens_per_s_user), default=None
    )


def _sizing(candidate: Candidate, need: Need, replicas: int, gpus_per_node: int) -> Sizing:
    workers = [(each.parallel.gpus, each.count * replicas) for each in candidate.workers]
    nodes = nodes_for(workers, gpus_per_node)
    hours = None if need.requests is None else need.requests / need.rate / 3600
    return Sizing(
        candidate=candidate,
        replicas=replicas,
        gpus=replicas * candidate.gpus,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        capacity=replicas * candidate.requests_per_s,
        hours=hours,
        node_hours=None if hours is None else hours * nodes,
    )


def nodes_for(workers: Sequence[tuple[int, int]], gpus_per_node: int) -> int:
    """Return the nodes for workers given as (GPUs of one, how many): the largest first, the others in the gaps.

    A worker that is larger than a node takes whole nodes; a smaller one never spans two.
    """
    whole = 0
    gaps: dict[int, int] = {}  # free GPUs -> nodes
    for gpus, count in sorted(workers, reverse=True):
        if gpus >= gpus_per_node:
            whole += count * math.ceil(gpus / gpus_per_node)
            continue
        left = _fill(gaps, gpus, count)
        per_node = gpus_per_node // gpus
        full, rest = divmod(left, per_node)
        for nodes, placed in ((full, per_node), (int(rest > 0), rest)):
            free = gpus_per_node - placed * gpus
            gaps[free] = gaps.get(free, 0) + nodes
            whole += nodes
    return whole


def _fill(gaps: dict[int, int], gpus: int, count: int) -> int:
    """Put workers into gaps, the smallest that takes one first; return how many are left."""
    for free in sorted(free for free in gaps if free >= gpus):
        per_gap = free // gpus
        nodes = min(gaps[free], math.ceil(count / per_gap))
        if not nodes:
            continue
        gaps[free] -= nodes
        placed = min(count, nodes * per_gap)
        count -= placed
        gaps[free % gpus] = gaps.get(free % gpus, 0) + nodes  # a gap that is filled in part counts as filled
    return count
