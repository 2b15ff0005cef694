"""Stagers: this process by copies, and one that goes on where another broke down."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from msgspec import structs

from aegis.errors import AegisError
from aegis.staging.events import Done, NodeResult, Progress
from aegis.staging.local import clean_here, stage_here, verify_here

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from aegis.staging.events import Event
    from aegis.staging.listing import Item
    from aegis.staging.stage import Action, Stager, Tell


class OnThisMachine:
    """The stager where all nodes are this machine: what several of them need is there once."""

    def run(self, items: Sequence[Item], hosts: Sequence[str], action: Action, tell: Tell) -> None:
        """Work on one item after the other; a failure of one leaves the others."""
        began, read, lock = time.monotonic(), 0, threading.Lock()
        for number, item in enumerate(items):
            moved, skipped, error = 0, False, ""

            def advanced(count: int, number: int = number, item: Item = item) -> None:
                nonlocal moved
                with lock:  # blocks are copied by several threads
                    moved += count
                    tell(_advanced(number, moved, item, hosts, began))

            try:
                if action == "verify":
                    error = verify_here(item)
                elif action == "clean":
                    skipped = not clean_here(item)
                else:
                    skipped = stage_here(item, advanced).skipped
            except AegisError as problem:
                error = problem.message
            read += moved
            result = NodeResult(
                item=number, host="", ok=not error, skipped=skipped, bytes=moved, error=error or None
            )
            for host in item.hosts or hosts:
                tell(structs.replace(result, host=host))
        seconds = time.monotonic() - began
        tell(Done(seconds=seconds, bytes_read=read, rate=read / seconds if seconds else 0.0))


class OneThenAnother:
    """A stager that leaves to another what it has not done when it breaks down."""

    def __init__(self, first: Stager, second: Stager, say: Callable[[str], None]) -> None:
        self.first = first
        self.second = second
        self.say = say

    def run(self, items: Sequence[Item], hosts: Sequence[str], action: Action, tell: Tell) -> None:
        """Work on all items; nodes for which something is decided are not asked again.

        Raises:
            AegisError: the other breaks down, too.
        """
        left = {(number, host) for number, item in enumerate(items) for host in item.hosts or hosts}

        def heard(event: Event) -> None:
            if isinstance(event, NodeResult):
                left.discard((event.item, event.host))
            tell(event)

        try:
            self.first.run(items, hosts, action, heard)
        except AegisError as error:
            if not left:
                raise
            self.say(f"{error.message}; going on in another way")
            remaining, needing, renumbered = narrowed(items, hosts, left, tell)
            self.second.run(remaining, needing, action, renumbered)


def narrowed(
    items: Sequence[Item], hosts: Sequence[str], left: Container[tuple[int, str]], tell: Tell
) -> tuple[list[Item], list[str], Tell]:
    """Return what is left to do, numbers of items with a host, and who is told of it under the old numbers."""
    numbers, remaining = [], []
    for number, item in enumerate(items):
        needed = tuple(host for host in hosts if (number, host) in left)
        if needed:
            numbers.append(number)
            remaining.append(structs.replace(item, hosts=needed))

    def renumbered(event: Event) -> None:
        if isinstance(event, NodeResult | Progress):
            event = structs.replace(event, item=numbers[event.item])
        tell(event)

    needing = {host for item in remaining for host in item.hosts}
    return remaining, [host for host in hosts if host in needing], renumbered


def _advanced(number: int, moved: int, item: Item, hosts: Sequence[str], began: float) -> Progress:
    return Progress(
        item=number,
        bytes=moved,
        total=item.size,
        nodes_done=0,
        nodes=len(item.hosts or hosts),
        seconds=time.monotonic() - began,
    )
