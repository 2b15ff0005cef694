"""How one job of a service hands over to the next, so that no request fails and no file has two writers.

The new job, when its servers are healthy, tells the old one's registry (`POST /retire`) until the old one has let go of the
endpoints file; then it writes that file. The old job drains its servers, which leave the rotation of gateways, waits until
they have nothing left to do, and ends.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from aegis.errors import AegisError, NotFoundError
from aegis.fleet.registries import registry_of
from aegis.fleet.verdict import HANDING_OVER
from aegis.registry.model import NO_ENGINE
from aegis.runs import ENDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aegis.fleet.jobs import Jobs
    from aegis.registry.client import RegistryClient
    from aegis.registry.model import Service
    from aegis.runs import Manifest

REGISTRY_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.3
FAR_SECONDS: Final = 10.0  # between looks at a job that does not answer
FILE_SECONDS: Final = (
    120.0  # for the other job to write the endpoints file: shared file systems may show it late
)
LEAST_SECONDS: Final = 10.0  # a retiring job serves on: who has read the endpoints file may still come
QUIET_LOOKS: Final = 3  # at idle servers in a row, before a job ends
BUSY_SECONDS: Final = 2.0
THREADS: Final = 32
OUT_OF_ROTATION: Final = frozenset({"draining", "stopped", "failed"})


def by_model(services: Iterable[Service]) -> Counter[str]:
    """Count the healthy servers of each model."""
    return Counter(
        str(each.metadata.get("model"))
        for each in services
        if each.status == "healthy" and each.port and each.service_type not in NO_ENGINE
    )


class Takeover:
    """The side of the new job.

    Args:
        jobs: the way to the old one.
        manifest: of this job; its predecessor is asked.
        mine: counts this job's healthy servers by model.
    """

    def __init__(self, jobs: Jobs, manifest: Manifest, mine: Callable[[], Counter[str]]) -> None:
        self._jobs, self._me, self._mine = jobs, manifest.job, mine
        self._predecessor = manifest.predecessor or ""
        self.is_over = not self._predecessor
        self.rival = ""  # job that has taken over already: this one is not needed
        self.said = ""
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Ask, now that the servers are healthy, until it is over."""
        if not self.is_over and self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="takeover")
            self._thread.start()

    def _run(self) -> None:
        while not (self.is_over or self.rival):
            time.sleep(self.step())

    def step(self) -> float:
        """Do what is due, and return the seconds until there may be something again."""
        try:
            return self._ask(self._jobs.find(self._predecessor))
        except NotFoundError:
            self._finish("nobody knows it any more")
            return 0.0
        except (AegisError, OSError):
            return FAR_SECONDS

    def _ask(self, before: Manifest) -> float:
        """Ask the old job once; return the seconds until it is to be asked again."""
        if before.state in ENDED:
            return self._end_of(before)
        if before.registry_url:
            try:
                with registry_of(self._jobs.transport, before, REGISTRY_SECONDS) as registry:
                    return self._retire(registry)
            except AegisError:
                pass  # it may have died
        (view,) = self._jobs.views([before], FAR_SECONDS)
        if view.model_status in ENDED or view.model_status == "PENDING":
            return self._end_of(self._jobs.reload(before))
        return FAR_SECONDS

    def _retire(self, registry: RegistryClient) -> float:
        theirs = by_model(registry.services())
        mine = self._mine()
        if any(mine[model] < count for model, count in theirs.items()):
            return 10 * POLL_SECONDS  # it serves with more than this job would
        answer = registry.retire(self._me)
        if answer.successor != self._me:
            return self._yield_to(answer.successor)
        if answer.done:
            self._finish("it hands over")
        return POLL_SECONDS

    def _end_of(self, before: Manifest) -> float:
        """Take over from a job that has ended, unless another one has."""
        if before.successor and before.successor != self._me and before.reason.startswith("handed over to"):
            return self._yield_to(before.successor)
        self._finish("it has ended")
        return 0.0

    def _yield_to(self, other: str) -> float:
        """See whether another job stands in already; if that has ended, it is the one to take over from."""
        try:
            (view,) = self._jobs.views([self._jobs.find(other)])
        except NotFoundError:
            self._finish(f"{other} is gone")
            return 0.0
        if view.model_status in ENDED:
            self._predecessor = other
        else:
            self.rival = other
        return POLL_SECONDS

    def _finish(self, why: str) -> None:
        self.said = f"takes over from {self._predecessor}: {why}"
        self.is_over = True


class Retirement:
    """The side of the old job: drains its servers and waits until they are idle.

    Args:
        client: of its own registry.
        successor: the job that takes over.
        is_replaced: tells whether the endpoints file lists the other job's servers.
        least: seconds that it serves on at least.
    """

    def __init__(
        self,
        client: RegistryClient,
        successor: str,
        is_replaced: Callable[[], bool],
        least: float = LEAST_SECONDS,
    ) -> None:
        self._client, self.successor, self._is_replaced, self._least = client, successor, is_replaced, least
        self._patience = time.monotonic() + FILE_SECONDS
        self.is_over = False
        self.reason = f"{HANDING_OVER} {successor}"
        threading.Thread(target=self._run, daemon=True, name="retirement").start()

    def _run(self) -> None:
        quiet, released = 0, math.inf
        while quiet < QUIET_LOOKS or time.monotonic() - released < self._least:
            try:
                serving = self._drain()
                left = _busy([f"{each.host}:{each.port}" for each in serving if each.port])
            except AegisError:  # the registry is started again
                time.sleep(POLL_SECONDS)
                continue
            if released == math.inf and self._is_released(serving):
                released = time.monotonic()
            quiet = 0 if left else quiet + 1
            time.sleep(POLL_SECONDS)
        self.is_over = True

    def _is_released(self, serving: list[Service]) -> bool:
        """Tell whether whoever looks now finds the other job: gateways at the registry, everybody else in the file."""
        in_file = not self._is_replaced() and time.monotonic() < self._patience
        return not in_file and not any(each.status == "healthy" for each in serving)

    def _drain(self) -> list[Service]:
        """Say, as often as need be, that the file is let go of, and that no server takes new requests; return the servers."""
        self._client.retire(self.successor, done=True)
        serving = [each for each in self._client.services() if each.service_type not in NO_ENGINE]
        for each in serving:
            if each.status not in OUT_OF_ROTATION:
                self._client.drain(each.service_id)
        return serving


def _busy(endpoints: list[str]) -> int:
    """Return how many servers have requests left; one that does not say so has none."""
    from aegis.fleet.concurrently import concurrently  # noqa: PLC0415 - start-up time

    answers = concurrently(_is_busy, endpoints, threads=THREADS, deadline=4 * BUSY_SECONDS)
    return sum(answer is not False for answer in answers)


def _is_busy(endpoint: str) -> bool:
    from aegis.fleet.metrics.reading import read  # noqa: PLC0415 - start-up time
    from aegis.fleet.registries import get  # noqa: PLC0415 - as above
    from aegis.schedulers.transport import Here  # noqa: PLC0415 - as above

    page = get(Here({}), endpoint, "/metrics", BUSY_SECONDS)
    if page is None:
        return False
    values = read(page.decode("utf-8", "replace"), time.monotonic()).values
    return values.get("running", 0.0) + values.get("waiting", 0.0) > 0
