"""Which instance takes the next row, and how many at once each of them takes. Pure: time comes from the caller.

An instance that tells its queue is given rows until a few of them wait. One that does not is given more until it says
that it is busy. Whoever fails is left alone for a while, longer each time, and then tried with one row: an instance
that fails fast would draw all rows to it otherwise.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis.api.targets import Target
    from aegis.mapper.answers import Word

LOOKED_AT: Final = (
    32  # lanes compared for one row; among more, the least of some is as good as the least of all
)
ALL_GAP: Final = 0.05  # seconds between two looks at all lanes, where these are many
FREED: Final = 8192
PATIENT: Final = frozenset({"failed", "missing"})  # may be the row's fault
FAILURES: Final = 3  # in a row: more than bad luck
PAUSE: Final = 0.5  # seconds that who fails is left alone, doubled each time
REST: Final = 0.1  # seconds that who is busy is left alone, doubled each time
LONGEST_PAUSE: Final = 30.0
GROWTH: Final = 1.5  # per report of an instance that could take more
LATER_GROWTH: Final = 1.1  # once its room is known
BUSY_FACTOR: Final = 0.5
BUSY_GAP: Final = 1.0  # seconds: requests that were sent together are refused together
UNKNOWN_CEILING: Final = 256  # for those that tell nothing: vLLM's usual --max-num-seqs


class Limits(Struct, frozen=True, kw_only=True):
    """Rows at once that an instance is given."""

    start: int = 16
    ceiling: int = 4096
    fixed: int | None = None  # no adapting


class Lane:
    """One instance, as the rows see it."""

    def __init__(self, target: Target, limits: Limits) -> None:
        self.target = target
        self.url = target.base_url
        self.name = msgspec.json.encode(
            target.models[0] if target.models else ""
        )  # for rows that name no model
        self.limit = float(limits.fixed or limits.start)
        self.outstanding = 0
        self.failures = 0  # without a good answer in between
        self.pauses = self.rests = 0  # because it failed; because it was busy
        self.paused_until = -inf
        self.reports = False  # tells its queue
        self.silent = False  # has no page of metrics
        self.hopeless = False  # its latest answer: no such model or route, or not with this key
        self.gone = self.recalled = False  # left the fleet; its rows were taken back
        self.tasks: set[Any] = set()  # the dispatcher's, under way
        self._limits = limits
        self._saturated = False
        self._slow_start = True  # until it has had too many
        self._shrunk = -inf

    def serves(self, model: str) -> bool:
        """Tell whether it answers for a model; who names none answers for any, and any answers for no name."""
        return not model or not self.target.models or model in self.target.models

    def load(self, now: float) -> float:
        """Return the share of its room that is taken; 1 or more: it takes nothing now."""
        if now < self.paused_until:
            return inf
        return self.outstanding / (1 if self.pauses else int(self.limit))

    def take(self) -> None:
        """A row is sent."""
        self.outstanding += 1
        if self.outstanding >= int(self.limit):
            self._saturated = True

    def hear(self, word: Word, now: float, wait: float | None = None) -> None:
        """Learn from what came back."""
        if word == "answered":
            self.failures = self.pauses = self.rests = 0
            self.hopeless = False
            self._grow_blindly()
        elif word == "busy":
            self._shrink(now)
            if now >= self.paused_until:
                self.paused_until = now + (
                    _doubled(REST, self.rests) if wait is None else min(wait, LONGEST_PAUSE)
                )
                self.rests += 1
        else:
            self.failures += 1
            if now >= self.paused_until and (word not in PATIENT or self.failures >= FAILURES):
                self.paused_until = now + _doubled(PAUSE, self.pauses)
                self.pauses += 1

    def report(self, running: float, waiting: float) -> None:
        """Learn from what the instance tells of its queue; a short one keeps it from running dry."""
        self.reports = True
        if self._limits.fixed:
            return
        spare = max(2.0, running / 8)
        if waiting > spare:
            self.limit = max(1.0, self.limit / 2, self.limit - (waiting - spare))
            self._slow_start = False
        elif self._saturated:
            growth = GROWTH if self._slow_start else LATER_GROWTH
            self.limit = min(float(self._limits.ceiling), self.limit * growth + 1)
        self._saturated = self.outstanding >= int(self.limit)

    def _grow_blindly(self) -> None:
        if self.reports or not self._saturated or self._limits.fixed:
            return
        self.limit = min(float(UNKNOWN_CEILING), self.limit + (1 if self._slow_start else 1 / self.limit))
        self._saturated = self.outstanding >= int(self.limit)

    def _shrink(self, now: float) -> None:
        if not self._limits.fixed and now - self._shrunk > BUSY_GAP:
            self.limit, self._shrunk, self._slow_start = max(1.0, self.limit * BUSY_FACTOR), now, False


class Balance:
    """The instances there are, by the models that they serve."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lanes: dict[Target, Lane] = {}
        self._serving: dict[str, list[Lane]] = {}
        self._next = 0  # where the next comparison begins, among many
        self._freed: deque[Lane] = deque(maxlen=FREED)  # among many, these have room
        self._all_at = -inf

    @property
    def lanes(self) -> list[Lane]:
        """All instances."""
        return list(self._lanes.values())

    def __contains__(self, target: Target) -> bool:
        return target in self._lanes

    def update(self, targets: Iterable[Target]) -> list[Lane]:
        """Take over which instances there are; return those that are gone."""
        now = dict.fromkeys(targets)
        gone = [lane for target, lane in self._lanes.items() if target not in now]
        for lane in gone:
            lane.gone = True
        self._lanes = {target: self._lanes.get(target) or Lane(target, self._limits) for target in now}
        self._serving.clear()
        return gone

    def serving(self, model: str) -> list[Lane]:
        """Return the instances of a model."""
        found = self._serving.get(model)
        if found is None:
            found = [lane for lane in self._lanes.values() if lane.serves(model)]
            self._serving[model] = found
        return found

    def choose(self, model: str, now: float, avoid: Lane | None = None) -> Lane | None:
        """Return the least busy instance of a model that takes a row now; `avoid` only where it is the only one."""
        lanes = self.serving(model)
        if len(lanes) == 1:
            return lanes[0] if lanes[0].load(now) < 1 else None
        if len(lanes) <= LOOKED_AT:
            return _least(lanes, now, avoid)
        self._next = (self._next + LOOKED_AT) % len(lanes)
        start = min(self._next, len(lanes) - LOOKED_AT)
        found = _least(lanes[start : start + LOOKED_AT], now, avoid)
        while found is None and self._freed:
            lane = self._freed.popleft()
            found = lane if lane is not avoid and lane.load(now) < 1 and lane.serves(model) else None
        if found is None and now >= self._all_at:
            self._all_at = now + ALL_GAP
            found = _least(lanes, now, avoid)
        return found

    def release(self, lane: Lane) -> None:
        """A row is back, whatever became of it."""
        lane.outstanding -= 1
        if not lane.gone and len(self._lanes) > LOOKED_AT:
            self._freed.append(lane)

    def wakes_at(self, now: float) -> float:
        """Return when the next instance is tried again, or infinity."""
        return min(
            (lane.paused_until for lane in self._lanes.values() if lane.paused_until > now), default=inf
        )


def _doubled(pause: float, times: int) -> float:
    return min(pause * 2.0 ** min(times, 16), LONGEST_PAUSE)  # a node may stay dead for days


def _least(lanes: list[Lane], now: float, avoid: Lane | None) -> Lane | None:
    best, least = None, 1.0
    for lane in lanes:
        if lane is not avoid and (load := lane.load(now)) < least:
            best, least = lane, load
    return best
