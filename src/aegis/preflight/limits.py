"""What the site's scheduler asks of every job, and what its queues take. Pure: the platform's facts, which grow old."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from aegis.errors import Problem
from aegis.preflight.finding import Finding, place_of, quantity
from aegis.spec.suggest import did_you_mean
from aegis.spec.walltime import format_walltime, parse_walltime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.spec.platform import Queue
    from aegis.spec.resolve import Resolved

RESERVATION = re.compile(r"[RMS]\d+(\..*)?")  # PBS makes a queue of that name for each reservation
ALSO_GIVEN_BY = {  # directives that say the same as a key
    "account": re.compile(r"-A\b|--account\b"),
    "walltime": re.compile(r"-t\b|--time\b|.*\bwalltime="),
    "filesystems": re.compile(r".*\bfilesystems="),
}


def limits(resolved: Resolved, nodes: int) -> list[Finding]:
    """Return what the site's scheduler would refuse, or leave waiting for ever."""
    deployment, platform = resolved.deployment, resolved.platform
    if deployment.scheduler not in (None, platform.scheduler) or platform.scheduler == "local":
        return []
    return [*_required(resolved), *_queues(resolved, nodes), *_stager(resolved, nodes)]


def _required(resolved: Resolved) -> Iterator[Finding]:
    directives = (*resolved.platform.directives, *resolved.deployment.directives)
    for key in resolved.platform.required:
        other = ALSO_GIVEN_BY.get(key)
        if getattr(resolved.deployment, key) or (other and any(map(other.match, directives))):
            continue
        flag = f"--{key.replace('_', '-')}"
        said = f"{resolved.platform.name} takes no job without `{key}`"
        yield Finding(Problem(flag, said, f"give {flag}, or `{key}:` in the deployment file"), certain=True)


def _stager(resolved: Resolved, nodes: int) -> Iterator[Finding]:
    if nodes > 1 and resolved.deployment.stager == "copy" and not resolved.deployment.skip_staging:
        said = f"a copy is for one machine, and this job has {nodes} nodes"
        hint = "leave it out: mpi or tcp is taken, whichever works there"
        yield Finding(Problem(place_of(resolved, "stager"), said, hint), certain=True)


def _queues(resolved: Resolved, nodes: int) -> Iterator[Finding]:
    queues, named = resolved.platform.queues, resolved.deployment.queue
    wanted = _seconds(resolved.deployment.walltime) or 0
    offered = [queue for queue in queues if named in (None, queue.name, queue.routes_from)]
    if named and queues and not offered and not RESERVATION.fullmatch(named):
        known = list(dict.fromkeys(_label(queue) for queue in queues))
        hint = did_you_mean(named, known) or f"known: {', '.join(known)}"
        said = f"{resolved.platform.name} is not known to have a queue `{named}`"
        yield Finding(Problem(place_of(resolved, "queue"), said, hint), certain=False)
    elif offered and not any(_takes(queue, nodes, wanted) for queue in offered):
        problem = _refused_by(resolved, nodes, wanted) if named else _nowhere(resolved, nodes, wanted)
        yield Finding(problem, certain=False)


def _refused_by(resolved: Resolved, nodes: int, wanted: int) -> Problem:
    """Return that the named queue does not take the job, and which one does."""
    queues, named = resolved.platform.queues, resolved.deployment.queue
    bins = [queue for queue in queues if named in (queue.name, queue.routes_from)]
    said = f"queue {named} of {resolved.platform.name} does not take {_asked(nodes, wanted)}: it has "
    said += "; ".join(map(_bin, bins))
    others = [_label(queue) for queue in queues if _takes(queue, nodes, wanted)]
    hint = f"{others[0]} takes it" if others else _instead(bins, nodes, wanted)
    return Problem(place_of(resolved, "queue"), said, hint)


def _nowhere(resolved: Resolved, nodes: int, wanted: int) -> Problem:
    """Return that no queue takes such jobs: the widest range of nodes of which that is true."""
    queues = resolved.platform.queues
    longest = _longest(queues, nodes)
    longer = [queue for queue in queues if longest is None or _limit(queue) > longest]
    below = max((queue.max_nodes or 0 for queue in longer if (queue.max_nodes or nodes) < nodes), default=0)
    above = min((queue.min_nodes for queue in longer if queue.min_nodes > nodes), default=None)
    if not longer:
        size = "jobs"
    elif above is None:
        size = f"{below + 1} nodes and more"
    else:
        size = f"{below + 1} to {above - 1} nodes" if above - below > 2 else quantity(nodes, "node")  # noqa: PLR2004 - a range
    time = "" if longest is None else f" {'for' if longer else 'of'} more than {format_walltime(longest)}"
    said = f"{_asked(nodes, wanted)} cannot be had: {size}{time} do not exist on {resolved.platform.name}"
    keys = ("walltime",) if longest is not None else ("nodes", "models[0].instances", "models[0].model")
    return Problem(place_of(resolved, *keys), said, _instead(queues, nodes, wanted))


def _instead(queues: Sequence[Queue], nodes: int, wanted: int) -> str | None:
    """Return the nearest that can be had: less time, fewer nodes, or more."""
    ways = []
    longest = _longest(queues, nodes)
    if longest:
        names = [_label(queue) for queue in queues if _takes(queue, nodes, longest)]
        ways.append(f"at most {format_walltime(longest)} ({names[0]})")
    enough = [queue for queue in queues if _limit(queue) >= wanted]
    smaller = [queue for queue in enough if (queue.max_nodes or nodes) < nodes]
    if smaller:
        nearest = max(smaller, key=lambda queue: queue.max_nodes or 0)
        ways.append(f"at most {quantity(nearest.max_nodes or 0, 'node')} ({_label(nearest)})")
    larger = [queue for queue in enough if queue.min_nodes > nodes]
    if larger:
        nearest = min(larger, key=lambda queue: queue.min_nodes)
        ways.append(f"at least {nearest.min_nodes} nodes ({_label(nearest)})")
    return f"ask for {' or '.join(filter(None, [', '.join(ways[:-1]), ways[-1]]))}" if ways else None


def _takes(queue: Queue, nodes: int, seconds: float) -> bool:
    return queue.min_nodes <= nodes <= (queue.max_nodes or nodes) and seconds <= _limit(queue)


def _longest(queues: Sequence[Queue], nodes: int) -> float | None:
    """Return the longest time for which so many nodes can be had; None: never."""
    return max((_limit(queue) for queue in queues if _takes(queue, nodes, 0)), default=None)


def _limit(queue: Queue) -> float:
    return _seconds(queue.max_walltime) or math.inf


def _seconds(walltime: str | None) -> int | None:
    try:
        return parse_walltime(walltime) if walltime else None
    except ValueError:  # of a profile; its author is not the one who submits
        return None


def _label(queue: Queue) -> str:
    """Return the name that a user gives."""
    return queue.routes_from or queue.name


def _asked(nodes: int, wanted: int) -> str:
    return quantity(nodes, "node") + (f" for {format_walltime(wanted)}" if wanted else "")


def _bin(queue: Queue) -> str:
    low, high = queue.min_nodes, queue.max_nodes
    size = f"{low}-{high}" if high else f"{low} and more"
    return f"{size} nodes" + (f" up to {queue.max_walltime}" if queue.max_walltime else "")
