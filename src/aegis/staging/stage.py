"""Staging, whoever does it: items to nodes, what came of each, and nothing lost in silence."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from msgspec import Struct

from aegis.errors import AegisError, PartialSuccess
from aegis.staging.events import Done, NodeResult
from aegis.staging.node.places import FOREIGN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aegis.staging.events import Event
    from aegis.staging.listing import Item

Action = Literal["stage", "verify", "clean"]
Tell: TypeAlias = "Callable[[Event], None]"
SAID = {"stage": "staged", "verify": "as staged", "clean": "removed"}
SHOWN = 20  # nodes that a message names


class Stager(Protocol):
    """What brings items to nodes: an MPI program, a chain of TCP connections, or a copy on this machine."""

    def run(self, items: Sequence[Item], hosts: Sequence[str], action: Action, tell: Tell) -> None:
        """Work on all items, one after the other, and tell what happens.

        Args:
            items: in their order; `hosts` of each are among those of the next argument.
            hosts: all nodes that take part.
            action: stage them; hash again what is staged; or remove it.
            tell: gets the events, one call at a time. A `NodeResult` for every node of every item is expected.

        Raises:
            SiteError: the programs cannot be started at all.
        """
        ...


class Results(Struct, frozen=True, kw_only=True):
    """What came of staging."""

    action: Action
    items: tuple[Item, ...]
    nodes: tuple[NodeResult, ...]  # one for every node of every item, in the order of items and nodes
    seconds: float
    bytes_read: int

    @property
    def failed(self) -> tuple[NodeResult, ...]:
        """Nodes that lack an item."""
        return tuple(each for each in self.nodes if not each.ok)

    @property
    def complete_hosts(self) -> tuple[str, ...]:
        """Nodes that have all that they need."""
        lacking = {each.host for each in self.failed}
        return tuple(dict.fromkeys(each.host for each in self.nodes if each.host not in lacking))

    def require(self) -> None:
        """Do nothing if every node has what it needs.

        Raises:
            PartialSuccess: some have it.
            AegisError: none has.
        """
        if not self.failed:
            return
        lines = failure_lines(self)
        kind = PartialSuccess if self.complete_hosts else AegisError
        nodes = len({each.host for each in self.nodes})
        lacking = nodes - len(self.complete_hosts)
        what = {"stage": "lack what they need", "verify": "differ", "clean": "are not clean"}[self.action]
        foreign = any(FOREIGN in (each.error or "") for each in self.failed)
        hint = "move it away, or use it as it is with --skip-staging" if foreign else None
        raise kind("\n".join([f"{lacking} of {nodes} nodes {what}", *lines]), hint=hint)


def stage(
    items: Sequence[Item], hosts: Sequence[str], stager: Stager, tell: Tell, action: Action = "stage"
) -> Results:
    """Bring items to their nodes.

    Args:
        items: the smallest first; an item without hosts is for all.
        hosts: the nodes.
        stager: who does it.
        tell: gets every event, for those who watch.
        action: what to do.

    Raises:
        SiteError: the stager cannot be started.
    """
    began = time.monotonic()
    ended: dict[tuple[int, str], NodeResult] = {}
    read = 0

    def heard(event: Event) -> None:
        nonlocal read
        if isinstance(event, NodeResult):
            ended[event.item, event.host] = event
        elif isinstance(event, Done):
            read += event.bytes_read
        tell(event)

    if items:
        stager.run(items, hosts, action, heard)
    silent = [
        NodeResult(item=number, host=host, ok=False, error="nothing was heard of it")
        for number, item in enumerate(items)
        for host in item.hosts or hosts
        if (number, host) not in ended
    ]
    for event in silent:
        heard(event)
    return Results(
        action=action,
        items=tuple(items),
        nodes=tuple(ended[number, host] for number, item in enumerate(items) for host in item.hosts or hosts),
        seconds=time.monotonic() - began,
        bytes_read=read,
    )


def failure_lines(results: Results) -> list[str]:
    """Return what went wrong; nodes with the same trouble are told once."""
    alike: dict[tuple[int, str], list[str]] = {}
    for each in results.failed:
        alike.setdefault((each.item, each.error or "no reason given"), []).append(each.host)
    lines = []
    for (number, error), hosts in alike.items():
        names = ", ".join(hosts[:SHOWN]) + (f" and {len(hosts) - SHOWN} more" if len(hosts) > SHOWN else "")
        destination = results.items[number].destination
        lines.append(f"{names}: {error}" if destination in error else f"{names}: {destination}: {error}")
    return lines
