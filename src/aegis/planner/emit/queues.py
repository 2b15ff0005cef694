"""Which queue of a platform takes a job, and for how long."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from aegis.spec.walltime import format_walltime, parse_walltime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.spec.platform import Platform, Queue


class Slot(NamedTuple):
    """Where a job goes; None: what the platform takes by itself. `said` is for its user."""

    queue: str | None
    walltime: str | None
    said: str = ""


def choose(platform: Platform, nodes: int) -> Slot:
    """Return the first queue that takes so many nodes for the platform's usual time, or else for the longest time.

    Where none takes them, the queue is left open, and `said` tells the nearest sizes.
    """
    usual = platform.defaults.get("walltime")
    if not platform.queues:
        return Slot(None, usual)
    offered = [queue for queue in platform.queues if _holds(queue, nodes)]
    if not offered:
        return Slot(
            None,
            usual,
            f"NO QUEUE of {platform.name} takes {nodes} nodes: {'; '.join(_nearest(platform, nodes))}",
        )
    wanted = parse_walltime(usual) if usual else 0
    queue = next((each for each in offered if _seconds(each) >= wanted), max(offered, key=_seconds))
    time = usual if _seconds(queue) >= wanted else format_walltime(_seconds(queue))
    limit = f" for at most {queue.max_walltime}" if queue.max_walltime else ""
    note = f" ({queue.note})" if queue.note else ""
    return Slot(_label(queue), time, f"queue {_label(queue)} takes {_sizes(queue)} nodes{limit}{note}")


def _holds(queue: Queue, nodes: int) -> bool:
    return queue.min_nodes <= nodes <= (queue.max_nodes or nodes)


def _nearest(platform: Platform, nodes: int) -> Iterator[str]:
    """Yield the nearest sizes below and above."""
    below = [queue for queue in platform.queues if queue.max_nodes is not None and queue.max_nodes < nodes]
    above = [queue for queue in platform.queues if queue.min_nodes > nodes]
    if below:
        queue = max(below, key=lambda each: each.max_nodes or 0)
        yield f"at most {queue.max_nodes} ({_label(queue)})"
    if above:
        queue = min(above, key=lambda each: each.min_nodes)
        yield f"at least {queue.min_nodes} ({_label(queue)})"


def _sizes(queue: Queue) -> str:
    return f"{queue.min_nodes} to {queue.max_nodes}" if queue.max_nodes else f"{queue.min_nodes} and more"


def _label(queue: Queue) -> str:
    """Return the name that users give."""
    return queue.routes_from or queue.name


def _seconds(queue: Queue) -> float:
    return parse_walltime(queue.max_walltime) if queue.max_walltime else math.inf
