"""What the head of a job makes of its fleet: who changed, who is settled, whether anything is left. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis.fleet.order import NodeOrder
    from aegis.registry.model import Service

TAIL_LINES = 12
NAMES_SHOWN = 5


class Counts(Struct, frozen=True):
    """How an instance fleet stands."""

    wanted: int
    healthy: int
    failed: int

    @property
    def settled(self) -> bool:
        """Nothing more will change by waiting."""
        return self.healthy + self.failed >= self.wanted

    @property
    def lost(self) -> bool:
        """Nothing is left to serve."""
        return self.failed >= self.wanted


class Failure(Struct, frozen=True):
    """Members that failed in the same way."""

    members: tuple[str, ...]
    reason: str
    tail: tuple[str, ...]  # last lines of their output


class Member(NamedTuple):
    """One process of an instance, and what it waits for."""

    service_id: str
    instance: str
    node: str
    manifests: tuple[str, ...]  # of what is staged for it


def members_of(orders: Iterable[NodeOrder]) -> list[Member]:
    """Return all members of a launch."""
    return [
        Member(each.id, each.metadata["instance"], order.node, tuple(need.manifest for need in each.needs))
        for order in orders
        for each in order.instances
    ]


class Progress:
    """Follows the services of one fleet."""

    def __init__(self, members: Iterable[Member]) -> None:
        self.members: dict[str, list[str]] = {}  # service ids by instance
        self._waiting: dict[tuple[str, str], list[str]] = {}  # instances by node and manifest
        for member in members:
            self.members.setdefault(member.instance, []).append(member.service_id)
            for manifest in member.manifests:
                self._waiting.setdefault((member.node, manifest), []).append(member.instance)
        self.wanted = set(self.members)
        self.services: dict[str, Service] = {}
        self.refused: dict[str, str] = {}  # instances that cannot be, whatever their agents say -> why

    def refuse(self, node: str, manifest: str, why: str) -> list[str]:
        """Give up the instances that wait for something on a node in vain; return the members that are to be told."""
        lost = [name for name in self._waiting.get((node, manifest), ()) if name not in self.refused]
        self.refused |= dict.fromkeys(lost, why)
        return [member for name in dict.fromkeys(lost) for member in self.members[name]]

    @property
    def given_up(self) -> bool:
        """Whether no head will serve again: `stopped` may be the last word of an agent that is started again."""
        heads = self.heads
        return all(
            name in self.refused or heads[name].status == "failed" for name in self.wanted if name in heads
        )

    def apply(self, services: Iterable[Service], removed: Iterable[str], *, reset: bool) -> list[str]:
        """Take a change from the registry; return a line for each thing that a person wants to know."""
        said = []
        fresh = {service.service_id: service for service in services}
        for name, service in fresh.items():
            line = _told(self.services.get(name), service)
            if line:
                said.append(line)
        if reset:
            self.services = fresh
        else:
            self.services |= fresh
            for name in removed:
                self.services.pop(name, None)
        return said

    @property
    def heads(self) -> dict[str, Service]:
        """The members that serve an API, by instance."""
        return {
            service.metadata["instance"]: service
            for service in self.services.values()
            if service.metadata.get("instance") in self.wanted and not service.metadata.get("rank")
        }

    @property
    def counts(self) -> Counts:
        """How the fleet stands; an instance has failed when any of its members has."""
        failed = {
            *self.refused,
            *(each.metadata.get("instance") for each in self.services.values() if each.status == "failed"),
        } & self.wanted
        healthy = [
            name for name, service in self.heads.items() if service.status == "healthy" and name not in failed
        ]
        return Counts(len(self.wanted), len(healthy), len(failed))

    @property
    def failed(self) -> list[Failure]:
        """What is known of the failed members; those that failed alike are told once."""
        alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for name, why in sorted(self.refused.items()):
            alike.setdefault((why, ()), []).append(name)
        for service in sorted(self.services.values(), key=lambda each: each.service_id):
            if service.status == "failed" and service.metadata.get("instance") not in self.refused:
                tail = tuple(service.metadata.get("tail") or ())[-TAIL_LINES:]
                reason = str(service.metadata.get("reason") or "no reason given")
                where = f"{service.service_id} on {service.metadata.get('node')}"
                alike.setdefault((reason, tail), []).append(where)
        return [Failure(tuple(names), reason, tail) for (reason, tail), names in alike.items()]


def failure_lines(failures: Iterable[Failure]) -> list[str]:
    """Return a report: who, why, and the last words."""
    lines = []
    for failure in failures:
        names = ", ".join(failure.members[:NAMES_SHOWN])
        more = len(failure.members) - NAMES_SHOWN
        lines.append(f"{names}{f' and {more} more' if more > 0 else ''}: {failure.reason}")
        lines += [f"    | {line}" for line in failure.tail]
    return lines


def _told(before: Service | None, now: Service) -> str:
    reason = str(now.metadata.get("reason") or "")
    if before is not None and before.status == now.status:
        known = before.metadata.get("reason") == reason
        retrying = now.status == "starting" and "next start" in reason
        if known or not (retrying or now.status in {"unhealthy", "failed"}):
            return ""
    if now.status == "pending":
        return ""
    where = f"{now.host}:{now.port}" if now.port else now.host
    if now.status == "healthy":
        took = now.metadata.get("ready_after")
        restarts = now.metadata.get("restarts")
        detail = f"after {took:.1f} s" if took is not None and not restarts else ""
        if restarts:
            detail = f"again (start {restarts + 1})"
        return f"{now.service_id} healthy {detail} at {where}".replace("  ", " ")
    if now.status == "starting" and reason in {"starting", "restarted"}:
        return f"{now.service_id} starting on {now.metadata.get('node')}, {where}"
    return f"{now.service_id} {now.status}: {reason}" if reason else f"{now.service_id} {now.status}"
