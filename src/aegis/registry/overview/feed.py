"""A state that is told to many watchers: looked at once a second for all of them, and only while there are any."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aegis.registry.overview.change import difference

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from aegis.registry.overview.model import Overview

SECONDS: Final = 1.0  # between two looks
BEAT_SECONDS: Final = 5.0  # without a change: a sign of life
KEPT: Final = 30  # events; who is further behind gets the whole state again

_encode = msgspec.json.Encoder().encode


class Feed:
    """Events for watchers: `state` with an Overview, then `change` with a Change, or `beat` with the time."""

    def __init__(self, look: Callable[[], Awaitable[Overview]], seconds: float = SECONDS) -> None:
        self._look, self._seconds = look, seconds
        self._state: Overview | None = None
        self._encoded: bytes | None = None  # the state as an event
        self._number = 0  # of the last event
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._news = asyncio.Event()  # replaced each time it is set
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def close(self) -> None:
        """End all watchers."""
        self._closing = True
        self._wake()

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield the events for one watcher, several at a time where it is slow, until this is closed."""
        self._watchers += 1
        self._task = task = self._task or self._begin()
        number = -1
        try:
            while not self._closing and not task.done():
                if self._state is not None and number < self._number:
                    event, number = self._after(number), self._number
                    yield event
                else:
                    await self._news.wait()
            if task.done():
                task.result()  # it never ends but by an error
        finally:
            self._watchers -= 1
            if not self._watchers or task.done():
                task.cancel()
                self._task = None

    def _begin(self) -> asyncio.Task[None]:
        self._state = self._encoded = None
        self._recent.clear()
        task = asyncio.create_task(self._follow())
        task.add_done_callback(lambda _: self._wake())
        return task

    async def _follow(self) -> None:
        quiet = 0.0
        while True:
            old, self._state = self._state, await self._look()
            self._encoded = None
            if old is None:
                self._number += 1
                self._wake()
            elif change := difference(old, self._state):
                quiet = 0.0
                self._tell(_event("change", change))
            elif quiet >= BEAT_SECONDS:
                quiet = 0.0
                self._tell(_event("beat", {"time": self._state.time}))
            await asyncio.sleep(self._seconds)
            quiet += self._seconds

    def _after(self, number: int) -> bytes:
        """Return what a watcher must be told that has heard all events up to a number."""
        if number >= 0 and self._recent and self._recent[0][0] <= number + 1:
            return b"".join(event for of, event in self._recent if of > number)
        if self._encoded is None:
            self._encoded = _event("state", self._state)
        return self._encoded

    def _tell(self, event: bytes) -> None:
        self._number += 1
        self._recent.append((self._number, event))
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _event(name: str, value: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + _encode(value) + b"\n\n"
