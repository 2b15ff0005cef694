"""Nodes and queues as PBS shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .state import RUNS
from .wire import clock

if TYPE_CHECKING:
    from .state import State
    from .wire import Queue


def nodes(state: State) -> dict[str, Any]:
    """Return what pbsnodes shows."""
    found = {}
    for node, name in state.site.nodes.items():
        jobs = [job for job in state.jobs.values() if job.state in RUNS and node in job.nodes]
        here = {
            "Mom": name,
            "ntype": "PBS",
            "state": "down" if node in state.down else "free",
            "pcpus": state.site.ncpus,
            "jobs": [job.id(state.site) for job in jobs],
            "resources_available": {
                "arch": "linux",
                "host": node,
                "mem": "24730032kb",
                "ncpus": state.site.ncpus,
                "ngpus": state.site.ngpus,
                "vnode": node,
            },
            "resources_assigned": {"ncpus": state.used()[node].ncpus} if jobs else {},
            "comment": "node down: communication closed",
            "resv_enable": "True",
            "sharing": "default_shared",
            "license": "l",
            "last_state_change_time": 1795227088,
            "last_used_time": 1795227820,
        }
        hidden = {name for name, there in (("jobs", jobs), ("comment", node in state.down)) if not there}
        found[node] = {name: value for name, value in here.items() if name not in hidden}
    return found


def queues(state: State) -> dict[str, Any]:
    """Return what qstat -Q shows."""
    return {name: _queue(state, name, queue) for name, queue in state.site.queues.items()}


def _queue(state: State, name: str, queue: Queue) -> dict[str, Any]:
    inside = [job for job in state.jobs.values() if job.queue == name and not job.is_over]
    letters = "".join(job.state for job in inside)
    names = {"Transit": "T", "Queued": "Q", "Held": "H", "Waiting": "W", "Running": "R", "Exiting": "E"}
    counts = {word: letters.count(letter) for word, letter in {**names, "Begun": "B"}.items()}
    limits: dict[str, Any] = {}
    if queue.max_nodes is not None:
        limits["nodect"] = queue.max_nodes
    if queue.max_walltime is not None:
        limits["walltime"] = clock(queue.max_walltime)
    return {
        "queue_type": "Route" if queue.route_to else "Execution",
        "total_jobs": len(inside),
        "state_count": "".join(f"{word}:{count} " for word, count in counts.items()),
        **({"from_route_only": "True"} if queue.from_route_only else {}),
        **({"resources_max": limits} if limits else {}),
        **({"route_destinations": ",".join(queue.route_to)} if queue.route_to else {}),
        "enabled": str(queue.enabled),
        "started": str(queue.started),
    }
