"""Several registries seen as one: their services are mirrored under the names of their sources, wishes go back to them.

The lease of what is mirrored is its source's: one that is silent turns stale, as a silent node does, and one that ends
is forgotten at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from aegis.errors import NotFoundError
from aegis.registry.model import Push, Report
from aegis.registry.sources import LOOK_SECONDS, Following

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aegis.registry.client import RegistryClient
    from aegis.registry.model import Service, Watched
    from aegis.registry.sources import Follower, Source, Way

RENEW_SECONDS: Final = 5.0  # between two full readings: ages and loads are no news that a watcher gets
BURST_SECONDS: Final = 0.02  # between two readings: what changes together comes together
OWN_NAMES: Final = ("node", "instance")  # in metadata; of one job, and so prefixed


class Seen(Struct, frozen=True):
    """A service of a source, and when it was last seen on the monotonic clock of this machine."""

    service: Service
    moment: float


class Mirror:
    """The services of one source, as its answers tell them; pure.

    Args:
        name: of the source; it stands before every id, and is the node of what is pushed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._seen: dict[str, Seen] = {}

    def learn(self, answer: Watched, now: float, wall: float) -> None:
        """Take an answer of the source.

        Args:
            answer: what it said.
            now: the monotonic clock.
            wall: epoch seconds here, for a registry that does not tell its own time.
        """
        if answer.reset:
            self._seen.clear()
        for gone in answer.removed:
            self._seen.pop(gone, None)
        there = answer.time or wall
        for service in answer.services:
            if self.name not in service.service_id.split(
                "/"
            ):  # it has been here before: registries mirror each other
                self._seen[service.service_id] = Seen(service, now - max(0.0, there - service.last_seen))

    def push(self, now: float) -> Push:
        """Return everything that is mirrored, under its names here."""
        return Push(node=self.name, services=tuple(self._report(seen, now) for seen in self._seen.values()))

    def _report(self, seen: Seen, now: float) -> Report:
        service = seen.service
        return Report(
            service_id=f"{self.name}/{service.service_id}",
            host=service.host,
            port=service.port,
            service_type=service.service_type,
            status=service.status,
            age=max(0.0, now - seen.moment),
            metadata=_prefixed(service.metadata, self.name),
        )


def _prefixed(metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    own = {key: f"{name}/{metadata[key]}" for key in OWN_NAMES if isinstance(metadata.get(key), str)}
    return {**metadata, **own}


class Federation:
    """Follows sources, hands on what they say, and takes wishes back to them.

    Args:
        look: returns the sources that there are now.
        say: gets what a person should know.
        pause: seconds between two looks.
    """

    def __init__(
        self,
        look: Callable[[], Iterable[Source[Way]]],
        say: Callable[[str], None],
        pause: float = LOOK_SECONDS,
    ) -> None:
        self._following = Following(look, self._follow, self._gone, say, pause)
        self._clients: dict[str, RegistryClient] = {}
        self._lock = threading.Lock()
        self._take: Callable[[Push], None] = lambda _push: None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, take: Callable[[Push], None]) -> None:
        """Begin to follow; `take` gets the full state of each source, in the event loop that calls this.

        Raises:
            AegisError: what was asked for is not there.
        """
        self._take, self._loop = take, asyncio.get_running_loop()
        self._following.__enter__()

    def stop(self) -> None:
        """Follow nobody any more."""
        self._following.__exit__()
        self._loop = None

    def owns(self, service_id: str) -> bool:
        """Tell whether a service is mirrored."""
        return service_id.partition("/")[0] in self._clients

    async def drain(self, service_id: str) -> Service:
        """Wish, where the service comes from, that it takes no new requests.

        Raises:
            AegisError: its registry refuses, or does not answer.
        """
        return await asyncio.to_thread(self._ask, "drain", service_id)

    async def delete(self, service_id: str) -> Service:
        """Have a service forgotten where it comes from.

        Raises:
            AegisError: its registry refuses, or does not answer.
        """
        return await asyncio.to_thread(self._ask, "delete", service_id)

    async def log(self, service_id: str, lines: int) -> str:
        """Return the end of a service's log, from where it comes from.

        Raises:
            AegisError: its registry has none, refuses, or does not answer.
        """
        name, _, theirs = service_id.partition("/")
        client = self._clients.get(name)
        if client is None:
            raise NotFoundError(f"{name} is not followed any more")
        return await asyncio.to_thread(client.log, theirs, lines)

    def _ask(self, wish: str, service_id: str) -> Service:
        name, _, theirs = service_id.partition("/")
        client = self._clients.get(name)
        if client is None:
            raise NotFoundError(f"{name} is not followed any more")
        service = client.drain(theirs) if wish == "drain" else client.delete(theirs)
        return replace(service, service_id=service_id, metadata=_prefixed(service.metadata, name))

    def _follow(self, follower: Follower[Way]) -> None:
        mirror = Mirror(follower.source.name)
        with follower.source.open() as way:
            with self._lock:
                if not follower.ended.is_set():
                    self._clients[mirror.name] = way.client
            since, renewed = None, -math.inf
            while not follower.ended.wait(BURST_SECONDS):
                if time.monotonic() - renewed >= RENEW_SECONDS:
                    since, renewed = None, time.monotonic()
                answer = way.client.watch(since, RENEW_SECONDS)
                since, now = answer.revision, time.monotonic()
                mirror.learn(answer, now, time.time())
                self._hand_on(mirror.push(now), follower)
                follower.well()

    def _hand_on(self, push: Push, follower: Follower[Way] | None) -> None:
        """Give a push to the event loop; what a source said before it ended is not taken after that."""

        def take() -> None:
            if follower is None or not follower.ended.is_set():
                self._take(push)

        if loop := self._loop:
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(take)

    def _gone(self, source: Source[Way]) -> None:
        with self._lock:
            self._clients.pop(source.name, None)
        self._hand_on(Push(node=source.name, services=()), None)
