"""What the head of a job makes of its fleet: who changed, who is settled, whether anything is left. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from aegis.fleet.agent.instance import DRAINED
from aegis.registry.model import GATEWAY_TYPE, NO_ENGINE

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
    """Return all members of a launch; gateways are members of no instance."""
    return [
        Member(each.id, each.metadata["instance"], order.node, tuple(need.manifest for need in each.needs))
        for order in orders
        for each in order.instances
        if each.service_type != GATEWAY_TYPE
    ]


class Progress:
    """Follows the services of one fleet.

    Args:
        members: of its instances.
        gateways: their service ids.
    """

    def __init__(self, members: Iterable[Member], gateways: Iterable[str] = ()) -> None:
        self._gateways = tuple(gateways)
        self.services: dict[str, Service] = {}
        self.refused: dict[str, str] = {}  # instances that cannot be, whatever their agents say -> why
        self.follow(members)

    def follow(self, members: Iterable[Member], wanted: Iterable[str] | None = None) -> None:
        """Follow these members from now on; `wanted`: their instances but for those that leave (default: all)."""
        self.members: dict[str, list[str]] = {}  # service ids by instance
        self._waiting: dict[tuple[str, str], list[str]] = {}  # instances by node and manifest
        for member in members:
            self.members.setdefault(member.instance, []).append(member.service_id)
            for manifest in member.manifests:
                self._waiting.setdefault((member.node, manifest), []).append(member.instance)
        self.wanted = set(self.members if wanted is None else wanted)

    def forget(self, names: Iterable[str]) -> None:
        """Forget what was said of instances that start anew, in another place."""
        for name in names:
            self.refused.pop(name, None)
            for member in self.members.get(name, ()):
                self.services.pop(member, None)

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
            name in self.refused or heads[name].status == "failed" or is_drained(heads[name])
            for name in self.wanted
            if name in heads
        )

    @property
    def broken(self) -> set[str]:
        """The instances that will not serve again; one has failed when any of its members has."""
        ended = (each for each in self.services.values() if each.status == "failed" or is_drained(each))
        return {*self.refused, *(str(each.metadata.get("instance")) for each in ended)} & self.wanted

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
    def gateways(self) -> list[Service]:
        """The gateways of this fleet that have said anything yet."""
        return [self.services[name] for name in self._gateways if name in self.services]

    @property
    def gateways_settled(self) -> bool:
        """Whether each gateway serves, or has failed once: what is tried again is not waited for."""
        return len(self.gateways) == len(self._gateways) and all(
            each.status not in {"pending", "starting"} or each.metadata.get("restarts")
            for each in self.gateways
        )

    @property
    def counts(self) -> Counts:
        """How the fleet stands."""
        failed = self.broken
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
            if service.service_type in NO_ENGINE:
                continue
            if service.status == "failed" and service.metadata.get("instance") not in self.refused:
                tail = tuple(service.metadata.get("tail") or ())[-TAIL_LINES:]
                reason = str(service.metadata.get("reason") or "no reason given")
                where = f"{service.service_id} on {service.metadata.get('node')}"
                alike.setdefault((reason, tail), []).append(where)
        return [Failure(tuple(names), reason, tail) for (reason, tail), names in alike.items()]


def is_drained(service: Service) -> bool:
    """Tell whether a server was to take no more requests, and has ended since: it is not started again."""
    return service.status == "stopped" and service.metadata.get("reason") == DRAINED


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
    beginning = now.status == "starting" and reason in {"starting", "restarted"}
    if now.status == "pending" or (beginning and now.service_type == GATEWAY_TYPE):
        return ""
    where = f"{now.host}:{now.port}" if now.port else now.host
    if now.status == "healthy":
        return _healthy(now, where)
    if beginning:
        return f"{now.service_id} starting on {now.metadata.get('node')}, {where}"
    return f"{now.service_id} {now.status}: {reason}" if reason else f"{now.service_id} {now.status}"


def _healthy(now: Service, where: str) -> str:
    took, restarts = now.metadata.get("ready_after"), now.metadata.get("restarts")
    if now.service_type == GATEWAY_TYPE:
        return f"gateway http://{where}/v1{' again' if restarts else ''}"
    detail = f"after {took:.1f} s" if took is not None and not restarts else ""
    if restarts:
        detail = f"again (start {restarts + 1})"
    return f"{now.service_id} healthy {detail} at {where}".replace("  ", " ")
