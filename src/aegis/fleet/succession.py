"""The place of a job in its service, as its head sees it: whom it takes over from, who comes after it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aegis.errors import AegisError
from aegis.fleet.endpoints import is_own
from aegis.fleet.handover import LEAST_SECONDS, Retirement, Takeover
from aegis.fleet.jobs import Jobs
from aegis.fleet.successors import end_of, renewal_of, terms_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from aegis.fleet.endpoints import EndpointsFile
    from aegis.fleet.successors import Own
    from aegis.registry.client import RegistryClient


class Succession:
    """Joins renewal and hand-over for the head of a job; of a job without a service it does nothing.

    Args:
        own: the job; who comes after it is noted in its manifest.
        endpoints: the file that one job hands to the next.
        say: gets a line for each event.
    """

    def __init__(self, own: Own, endpoints: EndpointsFile, say: Callable[[str], None]) -> None:
        self._own, self._manifest, self._endpoints, self._say = own, own.manifest, endpoints, say
        self._renewal = renewal_of(own)
        self._jobs = Jobs(own.clean)
        self._takeover: Takeover | None = None
        self._retirement: Retirement | None = None
        self._is_renewing = False
        self._end = end_of(own.resolved.deployment)
        endpoints.is_ours = not self._manifest.predecessor

    def announce(self) -> None:
        """Say in time what will be missing at the end."""
        manifest = self._manifest
        if manifest.predecessor:
            what = f"service {manifest.service}: this job" if manifest.service else "this job"
            self._say(f"{what} takes over from {manifest.predecessor}")
        if self._renewal and (problem := self._renewal.foresee()):
            self._say(f"warning: {problem}")

    @property
    def replaced_by(self) -> str | None:
        """The job that stands in for this one, which the scheduler has started again, already."""
        if not (self._renewal and self._manifest.restarts and self._manifest.successor):
            return None
        try:
            (view,) = self._jobs.views([self._jobs.find(self._manifest.successor)])
        except AegisError:
            return None
        return view.job_id if view.model_status == "READY" else None

    def settled(self, count: Callable[[], Counter[str]]) -> None:
        """Take over, now that every server is healthy or given up; `count` counts the healthy ones by model."""
        if self._manifest.predecessor:
            self._takeover = Takeover(self._jobs, self._manifest, count)
            self._takeover.begin()

    def retire(self, successor: str, client: RegistryClient) -> None:
        """Hand over, now that another job asks for it."""
        if self._retirement is None:
            self._endpoints.is_ours = False
            self._say(f"handing over to {successor}")
            if self._renewal:
                self._renewal.close()
            self._manifest.successor = successor
            shared = not is_own(self._own.resolved.deployment.endpoints_file)
            self._retirement = Retirement(
                client,
                successor,
                lambda: not shared or self._endpoints.is_replaced,
                self._own.patience.get("retire_least", LEAST_SECONDS),
            )

    def refresh(self) -> bool:
        """Say what is new; True when there is something to note."""
        manifest, renewal, takeover = self._manifest, self._renewal, self._takeover
        if takeover and takeover.is_over and not self._endpoints.is_ours and not self._retirement:
            self._endpoints.is_ours = True
            self._say(takeover.said)
        if renewal is None:
            return False
        if manifest.ready is not None and not self._is_renewing and not self._retirement:
            self._is_renewing = True
            renewal.begin(terms_of(self._own))
        for line in renewal.news():
            self._say(line)
        if self._retirement is None and renewal.successor != manifest.successor:
            manifest.successor = renewal.successor
            return True
        return False

    @property
    def reason(self) -> str:
        """What there is to know of the service besides that it serves."""
        if self._retirement:
            return self._retirement.reason
        return self._renewal.problem if self._renewal else ""

    @property
    def ended(self) -> str | None:
        """Why the job is to end in good order; None while it is not."""
        if self._retirement and self._retirement.is_over:
            return f"handed over to {self._retirement.successor}"
        if self._takeover and self._takeover.rival:
            return f"not needed: {self._takeover.rival} stands in already"
        if time.time() >= self._end:
            return "the service ends: its time is over"
        return None

    def end(self, *, wished: bool, failed: bool) -> None:
        """Leave the service in good order.

        Args:
            wished: a user ended it, and means the service.
            failed: the job did not want to end.
        """
        renewal, manifest = self._renewal, self._manifest
        if renewal is None or self._retirement:
            return
        renewal.close()
        if wished:
            renewal.cancel()
        elif failed and (manifest.ready is not None or manifest.predecessor):
            served = time.time() - manifest.ready if manifest.ready is not None else None
            before = manifest.job if served is not None else manifest.predecessor
            renewal.replace(before or manifest.job, served)
        manifest.successor = renewal.successor
        for line in renewal.news():
            self._say(line)
