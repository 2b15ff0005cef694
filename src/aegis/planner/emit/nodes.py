"""Which workers of a plan run on which node, for the scripts that start them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.emit.servers import Server


class Place(Struct, frozen=True, kw_only=True):
    """A worker, or the part of one, on a node."""

    server: Server
    number: int  # among the workers of its kind
    gpus: tuple[int, ...]  # of the node
    rank: int = 0  # among the nodes of the worker
    head: int = 0  # node of rank 0


def allocate(servers: Sequence[Server], replicas: int) -> list[list[Place]]:
    """Return the workers of each node.

    Replica by replica, each worker on the first node that has room for it; one that is larger than a node gets whole
    nodes of its own.
    """
    nodes: list[list[Place]] = []
    free: list[int] = []
    made: dict[str, int] = {}
    first = 0  # nodes before it are full
    for _ in range(replicas):
        for server in servers:
            for _ in range(server.count):
                number = made.get(server.role, 0)
                made[server.role] = number + 1
                if server.nodes > 1:
                    _spread(nodes, free, server, number)
                    continue
                while first < len(free) and not free[first]:
                    first += 1
                room = (index for index in range(first, len(free)) if free[index] >= server.gpus)
                index = next(room, len(nodes))
                if index == len(nodes):
                    nodes.append([])
                    free.append(server.gpus_per_node)
                start = server.gpus_per_node - free[index]
                gpus = tuple(range(start, start + server.gpus))
                nodes[index].append(Place(server=server, number=number, gpus=gpus, head=index))
                free[index] -= server.gpus
    return nodes


def _spread(nodes: list[list[Place]], free: list[int], server: Server, number: int) -> None:
    """Give a worker whole nodes."""
    head, share = len(nodes), -(-server.gpus // server.nodes)
    for rank in range(server.nodes):
        nodes.append([Place(server=server, number=number, gpus=tuple(range(share)), rank=rank, head=head)])
        free.append(0)
