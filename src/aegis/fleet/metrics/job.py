"""The metrics of one job: its healthy instances from its registry, looked at again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aegis.errors import AegisError, NotFoundError
from aegis.fleet.endpoints import by_position
from aegis.fleet.metrics.monitor import JobFigures, Monitor
from aegis.fleet.registries import endpoints_of, registry_of
from aegis.registry.model import NO_ENGINE, Service
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.fleet.jobs import Jobs
    from aegis.fleet.status import JobView

REGISTRY_SECONDS = 3.0
SCHEDULER_SECONDS = 30.0  # its word may be so old while the servers speak for themselves
WINDOW_SECONDS = 1.0  # between the two looks where one answer is wanted


class NotReady(AegisError):
    """The job has no metrics at present; `sentence` says so in vec-inf's words, for JSON."""

    transient = True

    def __init__(self, message: str, *, sentence: str, model_name: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.sentence = sentence
        self.model_name = model_name


class JobMetrics:
    """Looks at a job; the scheduler is asked for the first look, and when no instance answers any more.

    Args:
        jobs: the way to the job.
        text: names it, as for `Jobs.find`.
        instance: look at this one alone.

    Raises:
        NotFoundError: there is no such job.
    """

    def __init__(self, jobs: Jobs, text: str, instance: str | None = None) -> None:
        self._jobs = jobs
        self._manifest = jobs.find(text)
        self._instance = instance
        self._monitor: Monitor | None = None
        self._known: Sequence[Service] = ()

    def measure(self, seconds: float = WINDOW_SECONDS) -> JobFigures:
        """Return the figures of a window: the time since the look before, or else so many seconds.

        Raises:
            NotFoundError: the job has no such instance.
            NotReady: no instance answers; the message says why.
        """
        if self._monitor is None:
            self.look()
            time.sleep(seconds)
        return self.look()

    def look(self) -> JobFigures:
        """Return the figures since the look before; the first one has no rates.

        Raises:
            NotFoundError: the job has no such instance.
            NotReady: no instance answers; the message says why.
        """
        if self._monitor is None:
            view = self._view(SCHEDULER_SECONDS)
            self._known = view.services
            if not view.services and view.model_status == "READY":
                self._known = self._endpoints()
            self._monitor = Monitor(view.job_id, view.model_name, self._jobs.transport)
        else:
            self._known = self._registered() or self._known
        healthy = [each for each in self._chosen(self._known) if each.status == "healthy"]
        found = self._monitor.look(healthy)
        errors = [each.error for each in found.instances if each.error]
        if len(errors) < len(found.instances):
            return found
        self._monitor = None  # what was known of the job is out of date
        raise self._not_ready(self._view(), errors[0] if errors else "")

    def _view(self, max_age: float = 0.0) -> JobView:
        self._manifest = self._jobs.reload(self._manifest)
        return self._jobs.views([self._manifest], max_age)[0]

    def _registered(self) -> list[Service]:
        """Return the job's instances as its registry knows them now; nothing where it does not answer."""
        if not self._manifest.registry_url:
            return []
        try:
            with registry_of(self._jobs.transport, self._manifest, REGISTRY_SECONDS) as registry:
                return [each for each in registry.services() if each.service_type not in NO_ENGINE]
        except AegisError:
            return []

    def _endpoints(self) -> list[Service]:
        """Return the instances that the endpoints file lists: a registry that is silent says nothing about them."""
        found = []
        for line in endpoints_of(self._jobs.transport, self._manifest):
            host, _, port = line.rpartition(":")
            if port.isdecimal():
                found.append(
                    Service(
                        service_id=line,
                        host=host.strip("[]"),
                        port=int(port),
                        service_type="",
                        status="healthy",
                        last_seen=0.0,
                        metadata={},
                    )
                )
        return found

    def _chosen(self, services: Sequence[Service]) -> list[Service]:
        heads = sorted((each for each in services if not each.metadata.get("rank")), key=by_position)
        if self._instance is None:
            return heads
        found = [each for each in heads if each.service_id == self._instance]
        if heads and not found:
            names = [each.service_id for each in heads]
            raise NotFoundError(
                f"{self._manifest.job} has no instance `{self._instance}`",
                hint=did_you_mean(self._instance, names) or f"one of {', '.join(names)}",
            )
        return found

    def _not_ready(self, view: JobView, error: str) -> NotReady:
        if error and view.model_status == "READY":
            sentence = f"Metrics request failed, `metrics` endpoint might not be ready yet: {error}"
            said = f"no instance of {view.job_id} answers with metrics: {error}"
        else:
            pending = view.model_status == "PENDING"
            sentence = "Pending resources for server initialization" if pending else "Server not ready"
            reason = self._reason(view)
            said = f"{view.job_id} is {view.model_status}{f': {reason}' if reason else ''}"
        return NotReady(
            said,
            sentence=sentence,
            model_name=view.model_name,
            hint=f"`aegis status {view.job_id}` shows its servers",
        )

    def _reason(self, view: JobView) -> str:
        if self._instance is None or view.model_status != "READY":
            return view.reason
        states = [
            f"{each.service_id} is {each.status}"
            + (f": {reason}" if (reason := each.metadata.get("reason")) else "")
            for each in self._chosen(view.services)
        ]
        return ", ".join(states)
