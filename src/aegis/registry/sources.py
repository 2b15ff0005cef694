"""Registries that are followed while they come and go: where they are, the way there, and a thread for each."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, Self, TypeVar

from msgspec import Struct

from aegis.errors import AegisError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from aegis.registry.client import RegistryClient

LOOK_SECONDS: Final = 2.0  # between two looks for new sources
RETRY_SECONDS: Final = 2.0  # before a source that failed is opened again
QUIET_SECONDS: Final = (
    5.0  # that a source may be silent before a person is told: one that ends is silent at first
)

T = TypeVar("T")
Address = tuple[str, int]


def directly(addresses: Iterable[Address]) -> dict[Address, Address]:
    """Return each address by itself: nothing lies between."""
    return {address: address for address in addresses}


class Way(NamedTuple):
    """A registry that can be asked, and how its servers are reached from here."""

    client: RegistryClient
    # Where each address is found from here; those that nothing leads to are left out. To be asked now and then: it raises
    # SiteError once the connection that it stands on has been cut, and everything has to be opened again.
    reach: Callable[[Iterable[Address]], dict[Address, Address]] = directly


class Source(Struct, Generic[T], frozen=True):
    """One place that knows servers."""

    name: str  # for people, and different for each
    at: str  # its address; where that changes, another one has taken its place
    open: Callable[[], AbstractContextManager[T]]
    prefix: str = ""  # of its instances' names, where those of another source may be the same

    @property
    def key(self) -> tuple[str, str]:
        """What makes two sources the same."""
        return self.name, self.at


class Follower(Generic[T]):
    """One source that is followed; whoever follows it says here how that goes."""

    def __init__(self, source: Source[T], say: Callable[[str], None]) -> None:
        self.source = source
        self.ended = threading.Event()  # the source is gone, or nobody follows any more
        self.settled = threading.Event()  # it answered once, or failed to
        self.problem = ""
        self._say = say
        self._since = 0.0  # that there is a problem
        self._told = False  # about it

    def well(self) -> None:
        """Say that it answers."""
        if self._told and not self.ended.is_set():
            self._say(f"{self.source.name} answers again")
        self.problem, self._told = "", False
        self.settled.set()

    def unwell(self, problem: str) -> None:
        """Say that it does not; it is told once, and where it has answered before, only when that lasts."""
        now = time.monotonic()
        self._since = self._since if self.problem else now
        self.problem = problem
        lasts = not self.settled.is_set() or now - self._since >= QUIET_SECONDS
        if lasts and not self._told and not self.ended.is_set():
            self._told = True
            self._say(f"warning: {self.source.name}: {problem}")
        self.settled.set()


class Following(Generic[T]):
    """A thread for each source there is, between `with` and its end.

    Args:
        look: returns the sources that there are now; asked again and again. While it raises AegisError, its last answer
            stands.
        follow: follows one until its `ended`; what it raises as AegisError is told, and it is called again after a while.
        gone: gets each source that is there no more; never while `follow` of the next one of that name runs.
        say: gets what a person should know.
        pause: seconds between two looks.
    """

    def __init__(
        self,
        look: Callable[[], Iterable[Source[T]]],
        follow: Callable[[Follower[T]], None],
        gone: Callable[[Source[T]], None],
        say: Callable[[str], None],
        pause: float = LOOK_SECONDS,
    ) -> None:
        self._look, self._follow, self._gone, self._say, self._pause = look, follow, gone, say, pause
        self._followers: dict[tuple[str, str], Follower[T]] = {}
        self._trouble = ""  # of looking
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Look once, and go on.

        Raises:
            AegisError: of the first look.
        """
        self._update(self._look())
        threading.Thread(target=self._keep_looking, name="sources", daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        for follower in list(self._followers.values()):
            follower.ended.set()  # its thread ends with the answer that it waits for, or with the process

    @property
    def problem(self) -> str:
        """What is wrong with the sources at present."""
        each = [f"{one.source.name}: {one.problem}" for one in list(self._followers.values()) if one.problem]
        return "; ".join(filter(None, [self._trouble, *each]))

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """What the sources are told apart by, in the order in which they were found."""
        return tuple(self._followers)

    @property
    def names(self) -> tuple[str, ...]:
        """The sources that there are."""
        return tuple(one.source.name for one in list(self._followers.values()))

    def settle(self, seconds: float) -> None:
        """Return once every source has answered or failed to, or after some seconds."""
        deadline = time.monotonic() + seconds
        for follower in list(self._followers.values()):
            follower.settled.wait(max(0.0, deadline - time.monotonic()))

    def _keep_looking(self) -> None:
        while not self._ended.wait(self._pause):
            try:
                found = list(self._look())
            except (AegisError, OSError) as error:
                words = _words(error)
                if not self._trouble:
                    self._say(f"warning: {words}")
                self._trouble = words
                continue
            self._trouble = ""
            if not self._ended.is_set():
                self._update(found)

    def _update(self, sources: Iterable[Source[T]]) -> None:
        before = self._followers
        # Replaced, never changed: other threads read it.
        self._followers = {
            source.key: before.get(source.key) or Follower(source, self._say) for source in sources
        }
        for follower in [one for key, one in before.items() if key not in self._followers]:
            follower.ended.set()
            self._gone(follower.source)
        for follower in [one for key, one in self._followers.items() if key not in before]:
            name = f"source {follower.source.name}"
            threading.Thread(target=self._run, args=(follower,), name=name, daemon=True).start()

    def _run(self, follower: Follower[T]) -> None:
        while not follower.ended.is_set():
            try:
                self._follow(follower)
            except (AegisError, OSError) as error:  # also of this machine: no more files, processes or memory
                follower.unwell(_words(error))
            follower.ended.wait(RETRY_SECONDS)


def _words(error: AegisError | OSError) -> str:
    return error.message if isinstance(error, AegisError) else f"{error.strerror or error}"
