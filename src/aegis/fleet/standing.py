"""What the head of a job tells the registry of its job, for whoever looks at the fleet: the dashboard, `aegis top`."""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Any, Final

from aegis.errors import AegisError
from aegis.registry.model import JOB_TYPE, Push, Report

if TYPE_CHECKING:
    from aegis.fleet.inside import Walltime
    from aegis.registry.client import RegistryClient
    from aegis.runs import Manifest

RENEW_SECONDS: Final = 10.0
FACTS: Final = ("name", "service", "state", "reason", "nodes", "predecessor", "successor")


class Standing:
    """A job's entry in its registry. It serves nobody, so it is never `healthy`, and has port 0.

    What cannot be told is not told: the registry may be starting anew, and the next time comes soon.

    Args:
        registry: of the job; its timeout is how long telling may take.
        manifest: of the job; what is told of it is what it says then.
        walltime: the job's.
    """

    def __init__(self, registry: RegistryClient, manifest: Manifest, walltime: Walltime) -> None:
        self._registry, self._manifest = registry, manifest
        left = walltime.left()
        now = time.time()
        self._ends = now + left if math.isfinite(left) else None
        self._began = self._ends - walltime.limit if self._ends and walltime.limit else now
        # No other job's, for a registry may show several.
        self._name = "job-" + re.sub(r"[^A-Za-z0-9._-]+", "-", manifest.job)
        self._told: dict[str, Any] = {}
        self._when = -math.inf

    def tell(self) -> None:
        """Say how the job stands, where that changed or was not said lately."""
        facts = self._facts()
        now = time.monotonic()
        if facts == self._told and now - self._when < RENEW_SECONDS:
            return
        self._told, self._when = facts, now
        report = Report(
            service_id=self._name,
            host=self._manifest.host,
            port=0,
            service_type=JOB_TYPE,
            status="pending",
            age=0.0,
            metadata=facts,
        )
        self._push((report,))

    def end(self) -> None:
        """Take the entry away."""
        self._push(())

    def _facts(self) -> dict[str, Any]:
        manifest = self._manifest
        facts = {name: getattr(manifest, name) for name in FACTS}
        return {
            "handle": manifest.job,
            **facts,
            "gateways": list(manifest.gateways),
            "started": self._began,
            "walltime_end": self._ends,
        }

    def _push(self, services: tuple[Report, ...]) -> None:
        try:
            self._registry.push(Push(node=self._name, services=services))
        except AegisError:
            self._told = {}
