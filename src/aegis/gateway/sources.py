"""The servers of several registries and endpoints files as one, followed while these come, move and go."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from msgspec.structs import replace

from aegis.api.targets import Target, Targets
from aegis.registry.sources import LOOK_SECONDS, Address, Following, Source, Way, directly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aegis.registry.client import RegistryClient
    from aegis.registry.sources import Follower

CHECK_SECONDS: Final = 2.0  # between two looks whether the way to a source is still there

Place = Way | Path  # a registry, or an endpoints file


class Sources:
    """What `aegis.api.targets.Targets` is for one source, for all of them; a silent one keeps its last good answer.

    Args:
        look: returns the sources that there are now, and is asked again and again.
        say: gets what a person should know: who is silent, and who answers again.
        api_key: for the servers of endpoints files, which are asked for their models.
        pause: seconds between two looks.
    """

    def __init__(
        self,
        look: Callable[[], Iterable[Source[Place]]],
        say: Callable[[str], None],
        api_key: str | None = None,
        pause: float = LOOK_SECONDS,
    ) -> None:
        self._following = Following(look, self._follow, self._gone, say, pause)
        self._api_key = api_key
        self._found: dict[tuple[str, str], tuple[Target, ...]] = {}  # by key of the source
        self._registries: dict[tuple[str, str], RegistryClient] = {}
        self._now: tuple[Target, ...] = ()
        self._revision = 0
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        """Begin to follow.

        Raises:
            AegisError: what was asked for is not there.
        """
        self._following.__enter__()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._following.__exit__()

    @property
    def problem(self) -> str:
        """What is wrong with the sources at present."""
        return self._following.problem

    @property
    def names(self) -> tuple[str, ...]:
        """The sources that there are."""
        return self._following.names

    @property
    def registries(self) -> tuple[RegistryClient, ...]:
        """The registries that the servers come from."""
        with self._changed:
            return tuple(self._registries.values())

    def settle(self, seconds: float) -> None:
        """Return once every source has answered or failed to, or after some seconds."""
        self._following.settle(seconds)

    def now(self) -> tuple[int, tuple[Target, ...]]:
        """Return a revision and the servers; the revision grows with every change."""
        with self._changed:
            return self._revision, self._now

    def wait(self, revision: int, seconds: float) -> tuple[int, tuple[Target, ...]]:
        """Return as `now` does once there is another revision, or after some seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._revision != revision, seconds)
            return self._revision, self._now

    def _follow(self, follower: Follower[Place]) -> None:
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(follower.source.open())
            reach = directly if isinstance(place, Path) else place.reach
            stack.callback(self._lose, follower, reach)
            if isinstance(place, Path):
                targets = Targets.from_file(place, self._api_key)
            else:
                targets = Targets.from_registry(place.client)
            with targets:
                revision, found = targets.now()
                while not follower.ended.is_set():
                    near = _near(found, reach([(each.host, each.port) for each in found]))
                    self._publish(follower, near, targets.registry)
                    if targets.problem:
                        follower.unwell(targets.problem)
                    else:
                        follower.well()
                    revision, found = targets.wait(revision, CHECK_SECONDS)

    def _lose(self, follower: Follower[Place], reach: object) -> None:
        """Forget servers to which the way is closed: their ports of this machine may be somebody else's by now."""
        if reach is not directly:
            self._publish(follower, (), None)

    def _publish(
        self, follower: Follower[Place], targets: tuple[Target, ...], registry: RegistryClient | None
    ) -> None:
        source = follower.source
        with self._changed:
            if follower.ended.is_set():
                return
            named = (
                replace(each, instance=source.prefix + (each.instance or each.address)) for each in targets
            )
            self._found[source.key] = tuple(named) if source.prefix else targets
            if registry:
                self._registries[source.key] = registry
            self._join()

    def _gone(self, source: Source[Place]) -> None:
        with self._changed:
            self._found.pop(source.key, None)
            self._registries.pop(source.key, None)
            self._join()

    def _join(self) -> None:
        """Make one list of all; who is known by two sources counts once, as the first of them says."""
        by_address: dict[Address, Target] = {}
        for key in self._following.keys:
            for target in self._found.get(key, ()):
                by_address.setdefault((target.host, target.port), target)
        now = tuple(by_address.values())
        if now != self._now:
            self._now, self._revision = now, self._revision + 1
            self._changed.notify_all()


def _near(targets: Iterable[Target], addresses: dict[Address, Address]) -> tuple[Target, ...]:
    """Return the servers as they are reached from here; those that nothing leads to are left out."""
    return tuple(
        replace(target, host=near[0], port=near[1])
        for target in targets
        if (near := addresses.get((target.host, target.port)))
    )
