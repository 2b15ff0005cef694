"""An event loop for thousands of sockets in one thread, for a program that does nothing else.

Where every event comes alone, most of its cost is waking up for it: asyncio takes twice as long (`benchmarks/loadgen.py`).
So two looks at the sockets are PAUSE apart, and one look finds several of them ready. A time that is taken of an event may be
late by so much; after a quiet while it is not late at all.
"""

from __future__ import annotations

import heapq
import itertools
import select
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE: Final = 500e-6  # s
AT_ONCE: Final = 256  # sockets of one look
TIMERS_AT_ONCE: Final = 32  # of those due: the sockets get their turn between them
MILLI: Final = 1000.0
READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLIN | select.EPOLLOUT


class Loop:
    """Calls functions when it is their time, or when their socket is ready."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call a function once, at a monotonic time."""
        heapq.heappush(self._timers, (when, next(self._order), call))

    def watch(self, descriptor: int, events: int, ready: Callable[[int], None]) -> None:
        """Call a function with the events of a socket whenever there are some, until `forget`; each has its own events."""
        known = self._ready.get(descriptor)
        if known == ready:
            return
        if known:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._ready[descriptor] = ready

    def forget(self, descriptor: int) -> None:
        """Stop watching a socket, before it is closed."""
        if self._ready.pop(descriptor, None):
            self._epoll.unregister(descriptor)

    def run(self, going: Callable[[], bool]) -> None:
        """Run for as long as a function says so; there is always a timer."""
        poll, ready = self._epoll.poll, self._ready
        while going():
            self._run_due()
            milliseconds = int((self._timers[0][0] - monotonic()) * MILLI)  # poll would round up
            for descriptor, events in poll(max(0, milliseconds) / MILLI, AT_ONCE):
                if descriptor in ready:  # not closed by one of those before it
                    ready[descriptor](events)
            if (rest := min(PAUSE, self._timers[0][0] - monotonic())) > 0:
                sleep(rest)

    def _run_due(self) -> None:
        now = monotonic()
        for _ in range(TIMERS_AT_ONCE):
            if self._timers[0][0] > now:
                break
            heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        """Give its descriptor back; the sockets are their owners'."""
        self._epoll.close()
