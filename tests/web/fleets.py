"""Fleets to look at: what their agents would push."""

from __future__ import annotations

import math
import random
from typing import Any

from aegis.registry.model import Push, Report

BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)


class Server:
    """What the server of one instance counts."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        self.counts = {"prompt_tokens": 0.0, "generation_tokens": 0.0, "succeeded": 0.0}
        self.sums = dict.fromkeys(("first_token", "token_to_token"), 0.0)
        self.buckets = {name: dict.fromkeys(BOUNDS, 0) for name in self.sums}
        self.running = 0.0
        self.worked = math.nan  # until when

    def work(self, now: float) -> None:
        """Serve until now."""
        seconds = 10.0 if math.isnan(self.worked) else now - self.worked
        self.worked = now
        wave = 0.6 + 0.4 * math.sin(now / 400.0) + self.random.uniform(-0.08, 0.08)
        self.running = round(24 * wave)
        self.counts["generation_tokens"] += round(self.running * 38 * seconds)
        self.counts["prompt_tokens"] += round(self.running * 60 * seconds)
        self.counts["succeeded"] += round(self.running * 0.2 * seconds)
        for name, middle in (("first_token", 0.12), ("token_to_token", 0.024)):
            for _ in range(20):
                value = middle * math.exp(self.random.gauss(0, 0.5)) * (0.6 + wave)
                self.buckets[name][next(bound for bound in BOUNDS if value <= bound)] += 1
                self.sums[name] += value

    def load(self, now: float) -> dict[str, Any]:
        """Return what its agent tells."""
        told = {
            name: {"sum": self.sums[name], "buckets": {str(bound): n for bound, n in buckets.items() if n}}
            for name, buckets in self.buckets.items()
        }
        return {
            "at": now,
            "running": self.running,
            "waiting": max(0.0, self.running - 22),
            "kv_cache": min(1.0, self.running / 32),
            **self.counts,
            **told,
        }


class Site:
    """Nodes with instances.

    Args:
        instances: how many.
        per_node: of them.
        models: names; each gets its part.
    """

    def __init__(self, instances: int, per_node: int, models: tuple[str, ...], since: float) -> None:
        self.servers = [Server(number) for number in range(instances)]
        self.per_node, self.models, self.since = per_node, models, since
        self.changes: dict[int, dict[str, Any]] = {}  # number -> status, reason, tail, ...

    @property
    def nodes(self) -> int:
        return -(-len(self.servers) // self.per_node)

    def name(self, number: int) -> str:
        return f"{self.model(number).rpartition('/')[2].lower()}-{number}"

    def model(self, number: int) -> str:
        return self.models[number * len(self.models) // len(self.servers)]

    def push(self, node: int, now: float) -> Push:
        """Return what a node tells."""
        numbers = range(node * self.per_node, min(len(self.servers), (node + 1) * self.per_node))
        for number in numbers:
            self.servers[number].work(now)
        return Push(
            node=f"nid{node + 1001:06}", services=tuple(self.report(number, now) for number in numbers)
        )

    def report(self, number: int, now: float) -> Report:
        """Return what is told of one instance."""
        change = self.changes.get(number, {})
        metadata = {
            "model": self.model(number),
            "job": "slurm://4711203",
            "instance": self.name(number),
            "rank": 0,
            "members": 1,
            "devices": [number % self.per_node],
            "restarts": change.get("restarts", 0),
            "pid": 4000 + number,
            "since": change.get("since", self.since),
            "reason": change.get("reason", ""),
            "load": self.servers[number].load(now),
        }
        if "tail" in change:
            metadata["tail"] = change["tail"]
        return Report(
            service_id=self.name(number),
            host=f"10.0.{number // 250}.{number % 250 + 1}",
            port=8000 + number % self.per_node,
            service_type="vllm",
            status=change.get("status", "healthy"),
            age=0.5,
            metadata=metadata,
        )


def job(now: float, **changes: Any) -> Push:
    """Return what the head of a job tells."""
    facts: dict[str, Any] = {
        "handle": "slurm://4711203",
        "name": "nightly-eval",
        "service": "llama",
        "state": "READY",
        "reason": "",
        "nodes": 8,
        "gateways": ["10.0.0.1:8080"],
        "started": now - 7000.0,
        "walltime_end": now + 4321.0,
        "predecessor": None,
        "successor": None,
    }
    facts |= changes
    name = "job-" + str(facts["handle"]).replace("://", "-")
    report = Report(
        service_id=name, host="h", port=0, service_type="job", status="pending", age=0.0, metadata=facts
    )
    return Push(node=name, services=(report,))


def map_run(done: int) -> Push:
    """Return what a run of `aegis map` tells."""
    text = f"{done} of 120000 rows, 214 rows/s"
    facts = {"rows": 120_000, "done": done, "failed": 12, "rate": 214.0, "eta": 312.0, "text": text}
    report = Report(
        service_id="map-login1-77",
        host="login1",
        port=0,
        service_type="map",
        status="pending",
        age=0.0,
        metadata=facts,
    )
    return Push(node="map-login1-77", services=(report,))
