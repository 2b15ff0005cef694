"""What staging will move, to whom, and what room it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec import Struct

from aegis.errors import ConfigError
from aegis.staging.scan import scan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aegis.staging.listing import Item
    from aegis.staging.want import Want


class Need(NamedTuple):
    """What nodes with the same items need."""

    hosts: tuple[str, ...]
    items: tuple[int, ...]  # numbers of the plan's items
    size: int  # bytes
    files: int


class Plan(Struct, frozen=True, kw_only=True):
    """Items, the smallest first, with what each is."""

    items: tuple[Item, ...]
    wants: tuple[Want, ...]  # of each item
    hosts: tuple[str, ...]  # all nodes that get something

    @property
    def size(self) -> int:
        """Bytes that are read, once."""
        return sum(item.size for item in self.items)

    @property
    def files(self) -> int:
        """Files of all items."""
        return sum(len(item.files) for item in self.items)

    @property
    def delivered(self) -> int:
        """Bytes that are written, on all nodes."""
        return sum(item.size * len(item.hosts) for item in self.items)

    def needs(self) -> list[Need]:
        """Return what the nodes need; those that need the same are told once, in the order of the nodes."""
        of_host: dict[str, list[int]] = {host: [] for host in self.hosts}
        for number, item in enumerate(self.items):
            for host in item.hosts:
                of_host[host].append(number)
        alike: dict[tuple[int, ...], list[str]] = {}
        for host, numbers in of_host.items():
            alike.setdefault(tuple(numbers), []).append(host)
        return [
            Need(
                tuple(hosts),
                numbers,
                sum(self.items[number].size for number in numbers),
                sum(len(self.items[number].files) for number in numbers),
            )
            for numbers, hosts in alike.items()
        ]


def make_plan(
    wants: Sequence[Want], sources: Mapping[str, str] | None = None, only: Iterable[str] = ()
) -> Plan:
    """Look at all sources, and return what is to be staged, the smallest first.

    Args:
        wants: what is needed where.
        sources: where something is read instead of at its source, by source: an environment is unpacked first.
        only: the nodes to stage to; none: all that need something.

    Raises:
        ConfigError: sources cannot be staged; the problems of all of them are listed.
    """
    chosen, problems, hints = set(only), [], []
    found: list[tuple[Item, Want]] = []
    for want in wants:
        hosts = tuple(host for host in want.hosts if not chosen or host in chosen)
        if not hosts:
            continue
        try:
            item = scan((sources or {}).get(want.source, want.source), want.destination, hosts)
        except ConfigError as error:
            problems.append(
                f"{want.kind} of {want.name}: {error.message}" if want.kind == "weights" else error.message
            )
            hints.append(error.hint)
            continue
        found.append((item, msgspec.structs.replace(want, hosts=hosts)))
    if problems:
        raise ConfigError("\n".join(problems), hint=next(filter(None, hints), None))
    found.sort(key=lambda each: each[0].size)
    return Plan(
        items=tuple(item for item, _ in found),
        wants=tuple(want for _, want in found),
        hosts=tuple(dict.fromkeys(host for item, _ in found for host in item.hosts)),
    )
