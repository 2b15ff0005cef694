"""Which file goes where, and what becomes of it when something fails. Pure: time comes from the caller.

A position is a place in the order of the inputs, so the smaller position is the bigger file. A free slot takes the
biggest file that waits: the long ones end together with the short ones, not after them.
"""

from __future__ import annotations

from bisect import insort
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

LONGEST_BACK_OFF: Final = 300.0  # seconds
LONGEST_PAUSE: Final = 600.0

Key = TypeVar("Key", bound="Hashable")


class Rules(Struct, frozen=True, kw_only=True):
    """How failures are met."""

    slots: int = 1  # files at once, of an instance
    tries: int = 3  # of a file, where its program fails
    losses: int = 10  # of a file, where its instance or its node is lost: not its fault, unless it kills them
    back_off: float = 1.0  # seconds before the second try, doubled each time
    streak: int = 3  # different files that fail on an instance in a row: more than bad luck
    pause: float = 30.0  # seconds that such an instance rests while others work, doubled each time


class Lane(Generic[Key]):
    """One instance, as files see it."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.running: set[int] = set()
        self.usable = True  # there, and its programs can be started
        self.streak: set[int] = set()  # files that failed here since one did not
        self.pauses = 0
        self.paused_until = -inf

    def room(self, slots: int, now: float) -> int:
        """Return how many more files it takes now."""
        if not self.usable or self.rests(now):
            return 0
        return (1 if self.pauses else slots) - len(self.running)

    def succeeded(self) -> None:
        """A file is done: whatever failed before was not its fault."""
        self.streak.clear()
        self.pauses = 0

    def failed(self, position: int, rules: Rules, now: float) -> None:
        """A file failed here."""
        self.streak.add(position)
        if len(self.streak) >= rules.streak or self.pauses:
            self.rest(rules, now)

    def rest(self, rules: Rules, now: float) -> None:
        """It gets nothing for a while, each time longer, and then one file."""
        if now >= self.paused_until:
            self.paused_until = now + min(rules.pause * 2.0 ** min(self.pauses, 16), LONGEST_PAUSE)
            self.pauses += 1

    def rests(self, now: float) -> bool:
        """Tell whether it gets nothing now."""
        return now < self.paused_until

    def come_back(self) -> None:
        """It starts anew: it is healthy again, or was not the one to blame."""
        self.succeeded()
        self.paused_until = -inf


class Trouble(Generic[Key]):
    """What is remembered of a file that did not end well at once."""

    __slots__ = ("avoid", "losses", "tries")

    def __init__(self) -> None:
        self.tries = self.losses = 0
        self.avoid: set[Key] = set()  # where it failed


class Start(NamedTuple, Generic[Key]):
    """A file to begin, and on which instance."""

    position: int
    key: Key


class Schedule(Generic[Key]):
    """Files in order, instances with slots; every file ends once, by `done` or by a failure that is final.

    Args:
        files: how many; their positions are 0 to files - 1.
        rules: how failures are met.
    """

    def __init__(self, files: int, rules: Rules) -> None:
        self.files, self.rules = files, rules
        self.finished = 0  # done, or failed for good
        self.lanes: dict[Key, Lane[Key]] = {}
        self._fresh = 0  # the first position that was never begun
        self._ready: list[int] = []  # to be begun again now, sorted
        self._later: list[tuple[float, int]] = []  # when it is due
        self._trouble: dict[int, Trouble[Key]] = {}
        self._at: dict[int, Lane[Key]] = {}  # what runs

    @property
    def left(self) -> int:
        """Files that have not ended."""
        return self.files - self.finished

    @property
    def running(self) -> int:
        """Files that run."""
        return len(self._at)

    @property
    def failing(self) -> bool:
        """Whether files failed, since one was done there, on most of the instances that were given any."""
        given = [bool(lane.streak) for lane in self.lanes.values() if lane.streak or lane.running]
        return 2 * sum(given) > len(given)

    def instances(self, now: float) -> tuple[int, int]:
        """Return how many instances there are, and how many of them rest."""
        rest = [lane.rests(now) for lane in self.lanes.values() if lane.usable]
        return len(rest), sum(rest)

    def update(self, usable: Mapping[Key, bool]) -> list[Lane[Key]]:
        """Take over which instances there are, and whether programs can be started for them; return those lost now."""
        lost = []
        for key, lane in self.lanes.items():
            if lane.usable and not usable.get(key, False):
                lane.usable = False
                lost.append(lane)
        for key, is_usable in usable.items():
            lane = self.lanes.setdefault(key, Lane(key))
            if is_usable and not lane.usable:
                lane.come_back()
            lane.usable = is_usable
        for key in [key for key, lane in self.lanes.items() if key not in usable and not lane.running]:
            del self.lanes[key]
        return lost

    def take(self, now: float) -> list[Start[Key]]:
        """Return what is to begin now: each free slot takes the biggest file that may go there."""
        while self._later and self._later[0][0] <= now:
            insort(self._ready, heappop(self._later)[1])
        if not self._at:
            there, resting = self.instances(now)
            if resting == there:
                self._wake()
        starts = []
        slots = self.rules.slots
        free = [lane for lane in self.lanes.values() if lane.room(slots, now) > 0]
        while free and (self._ready or self._fresh < self.files):
            free.sort(
                key=lambda lane: len(lane.running)
            )  # spread: with fewer files than slots, on all instances
            still = []
            for lane in free:
                position = self._next_for(lane, now)
                if position is None:
                    continue
                lane.running.add(position)
                self._at[position] = lane
                starts.append(Start(position, lane.key))
                if lane.room(slots, now) > 0:
                    still.append(lane)
            free = still
        return starts

    def done(self, position: int) -> None:
        """A file is done."""
        self._leave(position).succeeded()
        self._trouble.pop(position, None)
        self.finished += 1

    def failed(self, position: int, now: float) -> bool:
        """A file failed; True when that is final, else it is tried again, elsewhere if there is another."""
        lane, trouble = self._leave(position), self._trouble.setdefault(position, Trouble())
        lane.failed(position, self.rules, now)
        trouble.avoid.add(lane.key)
        trouble.tries += 1
        return self._again(position, trouble, trouble.tries, self.rules.tries, now)

    def lost(self, position: int, now: float, by: Key | None = None) -> bool:
        """A file's instance or node was lost under it; True when that was once too often.

        Args:
            position: of the file.
            now: the time.
            by: an instance that is still listed, and does not answer: it gets nothing for a while.
        """
        trouble = self._trouble.setdefault(position, Trouble())
        lane = self._leave(position)
        if by is not None:
            lane.rest(self.rules, now)
        trouble.losses += 1
        return self._again(position, trouble, trouble.losses, self.rules.losses, now)

    def wakes_at(self, now: float) -> float:
        """Return when something is due that no end of a program tells, or infinity."""
        times = [lane.paused_until for lane in self.lanes.values() if lane.paused_until > now and lane.usable]
        return min([*times, *(due for due, _ in self._later[:1])], default=inf)

    def _wake(self) -> None:
        """End the rest of those on which files failed: where that is all, it is the files or their program, and waiting costs."""
        for lane in self.lanes.values():
            if len(lane.streak) >= self.rules.streak:
                lane.come_back()

    def _leave(self, position: int) -> Lane[Key]:
        lane = self._at.pop(position)
        lane.running.discard(position)
        return lane

    def _again(self, position: int, trouble: Trouble[Key], times: int, most: int, now: float) -> bool:
        if times >= most:
            del self._trouble[position]
            self.finished += 1
            return True
        pause = min(self.rules.back_off * 2.0 ** (trouble.tries + trouble.losses - 1), LONGEST_BACK_OFF)
        heappush(self._later, (now + pause, position))
        return False

    def _next_for(self, lane: Lane[Key], now: float) -> int | None:
        for place, position in enumerate(self._ready):
            if position > self._fresh < self.files:
                break
            if self._may_go(position, lane, now):
                return self._ready.pop(place)
        if self._fresh < self.files:
            self._fresh += 1
            return self._fresh - 1
        return None

    def _may_go(self, position: int, lane: Lane[Key], now: float) -> bool:
        """Tell whether a file may go there: not where it failed, while another works."""
        avoid = self._trouble[position].avoid
        return lane.key not in avoid or not any(
            other.usable and not other.rests(now) and key not in avoid for key, other in self.lanes.items()
        )
