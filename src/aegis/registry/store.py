"""The services of a fleet, in memory: pure bookkeeping on clocks that the caller brings, no I/O.

A push is the full state of one node, so the lease belongs to the node: a node that stays silent turns
all its services unhealthy after `stale_after` and removes them after `remove_after`. Leases are kept in
the order of their renewal, so a sweep touches only nodes whose time has come.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, Final, Protocol

from msgspec import UNSET, Raw, Struct
from msgspec.structs import replace

from aegis.registry.model import (
    HEALTHY_SECONDS,
    JOB_TYPE,
    REMOVE_SECONDS,
    STALE_SECONDS,
    Acknowledgement,
    Asked,
    Change,
    Granted,
    Orders,
    Push,
    Report,
    Retirement,
    Seen,
    Service,
    Watched,
    Wish,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

VOLATILE: Final = frozenset({"load"})  # metadata that moves all the time: no news for watchers
ENDED: Final = frozenset({"stopped", "failed"})  # says more than "unhealthy", however old
DRAINED: Final = ENDED | {"draining"}  # the agent has heard of the wish
WISHES: Final = 100  # the last ones are remembered, with their answers
NO_ORDERS: Final = (0, Raw(b""))
HISTORY: Final = 50_000  # services whose last change watchers can still ask for


class Listener(Protocol):
    """Who is told what a store hears, at once."""

    def heard(self, push: Push) -> None:
        """A node told its full state."""

    def changed(self, change: Change) -> None:
        """A service appeared, changed materially or went."""


class Entry(Struct, frozen=True):
    """A service, who reports it, and when it was last seen on the monotonic clock."""

    service: Service
    node: str
    seen: float


class Store:
    """All services; every method returns at once.

    Args:
        wall: epoch seconds, for `last_seen` and the journal.
        monotonic: seconds of a clock that never jumps, for leases.
        stale_after: seconds without a push until a service is shown unhealthy.
        remove_after: seconds without a push until a service is removed.
        revision: the first one; a restarted registry must begin above all it gave out before.
        history: number of services whose last change is remembered for `changed_since`.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        stale_after: float = STALE_SECONDS,
        remove_after: float = REMOVE_SECONDS,
        revision: int = 0,
        history: int = HISTORY,
    ) -> None:
        self.wall, self.monotonic = wall, monotonic
        self._stale_after, self._remove_after = stale_after, remove_after
        self._entries: dict[str, Entry] = {}
        # Ids by service type, by model, by node. Dicts are sets that keep their order.
        self._types: dict[str, dict[str, None]] = {}
        self._models: dict[str, dict[str, None]] = {}
        self._nodes: dict[str, dict[str, None]] = {}
        self._generations: dict[str, dict[str, int]] = {}  # instance -> id of a member -> its start
        self._fresh: OrderedDict[str, float] = OrderedDict()  # node -> time of its last push
        self._silent: OrderedDict[str, float] = OrderedDict()  # the same, of nodes past `stale_after`
        self._revision = self._forgotten = revision  # watchers from before `_forgotten` start anew
        self._history: OrderedDict[str, int] = OrderedDict()  # id -> revision of its last change
        self._history_limit = history
        self.listener: Listener | None = None
        self._drain: set[str] = set()
        self._stop = False
        self._orders: dict[str, tuple[int, Raw]] = {}  # node -> version, and the whole
        self._versions: dict[str, int] = {}  # node -> version that its agent follows
        self._wishes: OrderedDict[str, Asked] = OrderedDict()
        self._retirement: Retirement | None = None

    # What agents say

    def apply(self, push: Push) -> list[Change]:
        """Take the full state of one node; return what changed materially."""
        now, wall = self.monotonic(), self.wall()
        self._versions[push.node] = push.version
        reports = {each.service_id: each for each in push.services if not self._has_moved(each, push)}
        gone = [known for known in self._nodes.get(push.node, ()) if known not in reports]
        changes = [self._remove(service_id) for service_id in gone]
        for report in reports.values():
            entry = Entry(_service(report, wall - report.age), push.node, now - report.age)
            if change := self._put(entry):
                changes.append(change)
            if report.status in DRAINED:
                self._drain.discard(report.service_id)
        self._renew(push.node, now)
        if self.listener:
            self.listener.heard(push)
        return changes

    def acknowledge(self, node: str) -> Acknowledgement:
        """Say what the agent of a node should do; wishes are repeated until the agent reports them done."""
        ids = self._nodes.get(node, {})
        generations: dict[str, int] = {}
        for service_id in ids:
            if started := _start(self._entries[service_id].service):
                generations[started[0]] = max(self._generations[started[0]].values())
        drain = tuple(service_id for service_id in ids if service_id in self._drain) if self._drain else ()
        version, orders = self._orders.get(node, NO_ORDERS)
        news = orders if version > self._versions.get(node, 0) else UNSET
        return Acknowledgement(generations=generations, drain=drain, stop=self._stop, orders=news)

    def restore(self, changes: Iterable[Change]) -> None:
        """Take back services of a journal: their nodes have a whole lease to announce them again."""
        now, wall = self.monotonic(), self.wall()
        for change in changes:
            seen = now - max(0.0, wall - change.service.last_seen)
            self._put(Entry(change.service, change.node, seen))
            self._renew(change.node, now)

    def sweep(self) -> list[Change]:
        """Turn services of silent nodes unhealthy, remove those of lost nodes; return what changed."""
        now = self.monotonic()
        changes = []
        for node, pushed in _expired(self._fresh, now - self._stale_after):
            self._silent[node] = pushed
            stale = [
                _stale(self._entries[service_id], now - pushed) for service_id in self._nodes.get(node, ())
            ]
            changes += [change for entry in stale if (change := self._put(entry))]
        for node, _ in _expired(self._silent, now - self._remove_after):
            changes += [self._remove(service_id) for service_id in list(self._nodes.get(node, ()))]
        return changes

    # What operators wish

    def drain(self, service_id: str) -> bool:
        """Wish that a service takes no new requests; False if there is no such service."""
        if service_id not in self._entries:
            return False
        if self._entries[service_id].service.status not in DRAINED:
            self._drain.add(service_id)
        return True

    def stop(self) -> None:
        """Wish that the whole fleet ends."""
        if not self._stop:
            self._stop = True
            self._revision += 1

    def retire(self, wish: Retirement) -> Retirement:
        """Wish that the job hands over to another, or note that it has let go; return whose wish counts: the first."""
        known = self._retirement
        if known is None or (wish.successor == known.successor and wish.done > known.done):
            self._retirement = known = wish
            self._revision += 1
        return known

    def order(self, orders: Orders, whole: Raw) -> None:
        """Repeat these orders to the agent of their node until it follows them; older ones than are known say nothing."""
        if orders.version >= self._orders.get(orders.node, NO_ORDERS)[0]:
            self._orders[orders.node] = orders.version, whole

    def wish(self, wish: Wish) -> Asked:
        """Keep a wish for the head of the job."""
        self._revision += 1
        asked = Asked(id=str(self._revision), wish=wish)
        self._wishes[asked.id] = asked
        if len(self._wishes) > WISHES:
            self._wishes.popitem(last=False)
        return asked

    def answer(self, wish_id: str, answer: Granted) -> Asked | None:
        """Keep the head's answer to a wish; None if there is no such wish."""
        if wish_id not in self._wishes:
            return None
        self._wishes[wish_id] = replace(self._wishes[wish_id], answer=answer)
        return self._wishes[wish_id]

    def remove(self, service_id: str) -> Change | None:
        """Forget a service (its agent's next push brings it back); None if there is no such service."""
        return self._remove(service_id) if service_id in self._entries else None

    # What clients ask

    @property
    def revision(self) -> int:
        """Rises with every material change."""
        return self._revision

    def asked(self, wish_id: str) -> Asked | None:
        """Return a wish, with its answer if there is one."""
        return self._wishes.get(wish_id)

    def nodes(self) -> list[Seen]:
        """Return the nodes that have told of themselves and are not forgotten, and when they did last."""
        now = self.monotonic()
        return [
            Seen(node=node, age=max(0.0, now - pushed), version=self._versions.get(node, 0))
            for node, pushed in (*self._fresh.items(), *self._silent.items())
        ]

    def get(self, service_id: str) -> Service | None:
        """Return one service, or None."""
        entry = self._entries.get(service_id)
        return entry.service if entry else None

    def select(
        self, *, service_type: str | None = None, status: str | None = None, model: str | None = None
    ) -> list[Service]:
        """Return the services that match all that is given; what is told of jobs only where its type is asked for."""
        entries = self._matching(service_type, model)
        hidden = None if service_type == JOB_TYPE else JOB_TYPE  # whoever counts services counts servers
        return [
            entry.service
            for entry in entries
            if entry.service.service_type != hidden and (status is None or entry.service.status == status)
        ]

    def healthy(
        self, *, service_type: str | None = None, model: str | None = None, timeout: float = HEALTHY_SECONDS
    ) -> list[Service]:
        """Return the healthy services that were seen less than `timeout` seconds ago."""
        since = self.monotonic() - timeout
        entries = self._matching(service_type, model)
        return [
            entry.service for entry in entries if entry.service.status == "healthy" and entry.seen > since
        ]

    def by_node(self) -> Iterator[tuple[str, float, list[Service]]]:
        """Yield each node that has services, with the seconds since it last told, and them."""
        now = self.monotonic()
        for node, ids in self._nodes.items():
            told = self._fresh.get(node) or self._silent.get(node, now)
            yield node, now - told, [self._entries[service_id].service for service_id in ids]

    def tally(self) -> Counter[tuple[str, str]]:
        """Count the services by type and status."""
        return Counter((entry.service.service_type, entry.service.status) for entry in self._entries.values())

    def changed_since(self, revision: int | None) -> Watched:
        """Return what changed after a revision, or everything when that cannot be told."""
        if revision is None or not self._forgotten <= revision <= self._revision:
            everything = tuple(entry.service for entry in self._entries.values())
            return self._watched(everything, (), reset=True)
        changed, removed = [], []
        for service_id in reversed(self._history):
            if self._history[service_id] <= revision:
                break
            if entry := self._entries.get(service_id):
                changed.append(entry.service)
            else:
                removed.append(service_id)
        return self._watched(tuple(reversed(changed)), tuple(reversed(removed)), reset=False)

    # Bookkeeping

    def _watched(self, services: tuple[Service, ...], removed: tuple[str, ...], *, reset: bool) -> Watched:
        return Watched(
            wishes=tuple(asked for asked in self._wishes.values() if asked.answer is None) or UNSET,
            revision=self._revision,
            services=services,
            removed=removed,
            reset=reset,
            stop=self._stop,
            time=self.wall(),
            retire=self._retirement.successor if self._retirement else "",
        )

    def _has_moved(self, report: Report, push: Push) -> bool:
        """Tell whether a service was given to another node, and an agent that was away has not heard of it."""
        entry = self._entries.get(report.service_id)
        behind = push.version < self._orders.get(push.node, NO_ORDERS)[0]
        return behind and entry is not None and entry.node != push.node

    def _matching(self, service_type: str | None, model: str | None) -> Iterator[Entry]:
        if model is not None:
            found = map(self._entries.__getitem__, self._models.get(model, ()))
            return (e for e in found if service_type is None or e.service.service_type == service_type)
        if service_type is not None:
            return map(self._entries.__getitem__, self._types.get(service_type, ()))
        return iter(self._entries.values())

    def _renew(self, node: str, now: float) -> None:
        self._silent.pop(node, None)
        self._fresh[node] = now
        self._fresh.move_to_end(node)

    def _put(self, entry: Entry) -> Change | None:
        old = self._entries.get(entry.service.service_id)
        self._entries[entry.service.service_id] = entry
        if old and old.node == entry.node and not _differ(old.service, entry.service):
            return None
        if old:
            self._unindex(old)
        self._index(entry)
        return self._note(entry, removed=False)

    def _remove(self, service_id: str) -> Change:
        entry = self._entries.pop(service_id)
        self._drain.discard(service_id)
        self._unindex(entry)
        return self._note(entry, removed=True)

    def _note(self, entry: Entry, *, removed: bool) -> Change:
        self._revision += 1
        self._history[entry.service.service_id] = self._revision
        self._history.move_to_end(entry.service.service_id)
        if len(self._history) > self._history_limit:
            self._forgotten = self._history.popitem(last=False)[1]
        change = Change(time=self.wall(), node=entry.node, service=entry.service, removed=removed)
        if self.listener:
            self.listener.changed(change)
        return change

    def _indices(self, entry: Entry) -> Iterator[tuple[dict[str, dict[str, None]], str]]:
        yield self._types, entry.service.service_type
        yield self._nodes, entry.node
        if isinstance(model := entry.service.metadata.get("model"), str):
            yield self._models, model

    def _index(self, entry: Entry) -> None:
        for index, key in self._indices(entry):
            index.setdefault(key, {})[entry.service.service_id] = None
        if started := _start(entry.service):
            self._generations.setdefault(started[0], {})[entry.service.service_id] = started[1]

    def _unindex(self, entry: Entry) -> None:
        for index, key in self._indices(entry):
            _discard(index, key, entry.service.service_id)
        if started := _start(entry.service):
            _discard(self._generations, started[0], entry.service.service_id)


def _service(report: Report, last_seen: float) -> Service:
    return Service(
        service_id=report.service_id,
        host=report.host,
        port=report.port,
        service_type=report.service_type,
        status=report.status,
        last_seen=last_seen,
        metadata=report.metadata,
    )


def _start(service: Service) -> tuple[str, int] | None:
    """Instance and generation of a member of an instance over several nodes."""
    metadata = service.metadata
    instance, generation, members = (
        metadata.get("instance"),
        metadata.get("generation"),
        metadata.get("members"),
    )
    if isinstance(instance, str) and type(generation) is int and type(members) is int and members > 1:
        return instance, generation
    return None


def _stale(entry: Entry, silence: float) -> Entry:
    if entry.service.status in ENDED:
        return entry
    reason = f"no word from its node for {silence:.0f} s"
    metadata = {**entry.service.metadata, "reason": reason}
    return Entry(replace(entry.service, status="unhealthy", metadata=metadata), entry.node, entry.seen)


def _differ(old: Service, new: Service) -> bool:
    if (old.status, old.host, old.port, old.service_type) != (
        new.status,
        new.host,
        new.port,
        new.service_type,
    ):
        return True
    return old.metadata != new.metadata and _material(old.metadata) != _material(new.metadata)


def _material(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in VOLATILE}


def _expired(leases: OrderedDict[str, float], until: float) -> Iterator[tuple[str, float]]:
    while leases and leases[next(iter(leases))] <= until:
        yield leases.popitem(last=False)


def _discard(index: dict[str, dict[str, Any]], key: str, service_id: str) -> None:
    index[key].pop(service_id)
    if not index[key]:
        del index[key]
