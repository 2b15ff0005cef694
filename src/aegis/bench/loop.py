"""An event loop for thousands of sockets in one thread, for a program that does nothing else.

Where every event comes alone, most of its cost is waking up for it: asyncio takes twice as long (`benchmarks/loadgen.py`).
So two looks at the sockets are PAUSE apart, and one look finds several of them ready. They became so since the look before: their
time is the middle between the two, which is half of PAUSE off at most and right in the mean. After a quiet while it is exact.
Where a busy machine held a look up, their time is half of PAUSE before it: no event is told to be earlier than that.
"""

from __future__ import annotations

import heapq
import itertools
import select
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE: Final = 1e-3  # s
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
        self.ready_at = monotonic()  # when the sockets that are being called became ready

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
        ready, looked = self._ready, monotonic()
        while going():
            self._run_due()
            before, looked = looked, monotonic()
            if found := self._epoll.poll(0, AT_ONCE):
                self.ready_at = looked - min(looked - before, PAUSE) / 2
            else:
                found = self._wait()
            for descriptor, events in found:
                if descriptor in ready:  # not closed by one of those before it
                    ready[descriptor](events)
            if (rest := min(PAUSE, self._timers[0][0] - monotonic())) > 0:
                sleep(rest)

    def _wait(self) -> list[tuple[int, int]]:
        """Return the sockets that become ready first, or none when it is time for a timer."""
        milliseconds = int((self._timers[0][0] - monotonic()) * MILLI)  # poll would round up
        found = self._epoll.poll(max(0, milliseconds) / MILLI, AT_ONCE)
        self.ready_at = monotonic()
        return found

    def _run_due(self) -> None:
        now = monotonic()
        for _ in range(TIMERS_AT_ONCE):
            if self._timers[0][0] > now:
                break
            heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        """Give its descriptor back; the sockets are their owners'."""
        self._epoll.close()
