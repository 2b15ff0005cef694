"""Which instance runs on which node, devices, CPUs and ports: pure functions, no I/O.

1. Each instance is split into members: one per node, all of the same size.
2. Members are packed. A *pattern* is what one node holds; it is repeated as often as the members last, so
   the work grows with the patterns, and only writing the answer down grows with the instances.
3. A pattern fixes the devices, CPUs and ports of its slots, the same on every node that holds it.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from msgspec import Struct

from aegis.cpulist import parse_cpulist
from aegis.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from aegis.spec.deployment import ModelEntry
    from aegis.spec.platform import Node

PORT_STRIDE = 64  # internal ports of a member
INTERNAL_OFFSET = 1000  # from the first API port to the first internal one
LAST_PORT = 65535

Pattern: TypeAlias = tuple[int, ...]  # how many members of each group one node holds

# The structs below say gc=False: they hold only numbers and each other, so they cannot form cycles, and the
# garbage collector would otherwise walk all 100,000 of a large fleet again and again.


class Member(Struct, frozen=True, gc=False):
    """The part of an instance that runs on one node."""

    rank: int  # 0 serves the API
    node: int  # index into the allocation's nodes
    slot: int  # how many members were placed on this node before
    devices: tuple[int, ...]
    cpus: tuple[int, ...]  # empty: not bound
    port: int  # the API's on rank 0, unused on the others
    internal_port: int  # first of PORT_STRIDE ports that the engine may use inside (VLLM_PORT)


class Instance(Struct, frozen=True, gc=False):
    """One engine server on one or more nodes."""

    model: int  # index into the deployment's models
    index: int  # number among the instances of that model
    members: tuple[Member, ...]


class Placement(Struct, frozen=True, gc=False):
    """The answer for a whole deployment."""

    nodes: int
    instances: tuple[Instance, ...]


class _Group(NamedTuple):
    """Instances whose members may take each other's place."""

    size: int  # devices of a member
    spread: int  # members of an instance, each on its own node
    instances: tuple[tuple[int, int], ...]  # (model, index)


class _Seat(NamedTuple):
    """What a slot of a node offers to a member."""

    slot: int
    devices: tuple[int, ...]
    cpus: tuple[int, ...]
    port: int
    internal_port: int


def place(
    models: Sequence[ModelEntry],
    node: Node,
    *,
    port_start: int,
    reserved_ports: Collection[int] = (),
    available_nodes: int | None = None,
) -> Placement:
    """Place every instance of every model on as few nodes as the packing finds.

    Args:
        models: what to place.
        node: the nodes, all alike; `node.devices` is known.
        port_start: first API port on each node; slots count upwards from it.
        reserved_ports: ports that no member may get, such as the registry's.
        available_nodes: nodes that the allocation has; None: as many as needed.

    Returns:
        Instances in the order of the models, then of their number. Nodes count from 0 without a gap.

    Raises:
        PlacementError: more nodes or ports are needed than there are.
    """
    groups = _groups(models, _devices(node))
    patterns = _pack(groups, _devices(node))
    nodes = sum(repeat for _, repeat in patterns)
    if available_nodes is not None and nodes > available_nodes:
        raise _too_few_nodes(models, _devices(node), nodes, available_nodes)
    ports = _ports(max((sum(pattern) for pattern, _ in patterns), default=0), port_start, reserved_ports)

    seats: list[list[tuple[int, _Seat]]] = [[] for _ in groups]  # by group: (node, seat), in order of nodes
    first = 0
    for pattern, repeat in patterns:
        layout = _layout(groups, pattern, node, ports)
        for number in range(first, first + repeat):
            for group, seat in layout:
                seats[group].append((number, seat))
        first += repeat
    instances = [
        instance for group, offer in zip(groups, seats, strict=True) for instance in _seat(group, offer)
    ]
    instances.sort(key=lambda instance: (instance.model, instance.index))
    return Placement(nodes=nodes, instances=tuple(instances))


def place_more(
    model: int,
    entry: ModelEntry,
    count: int,
    node: Node,
    running: Collection[Instance],
    *,
    nodes: Sequence[int],
    port_start: int,
    reserved_ports: Collection[int] = (),
) -> tuple[Instance, ...]:
    """Place further instances of a model beside what runs, by the same rules; what runs stays where it is.

    Args:
        model: index into the deployment's models.
        entry: that model.
        count: how many more.
        node: the nodes, all alike.
        running: everything that holds devices and ports.
        nodes: indices of those that may be used. One that is in use is filled before an empty one is begun: that is a spare.
        port_start: as for `place`.
        reserved_ports: as for `place`.

    Returns:
        The further instances, with the lowest numbers that are free.

    Raises:
        PlacementError: not all of them fit.
    """
    spread, size = split(entry, _devices(node))
    taken: dict[int, set[int]] = {number: set() for number in nodes}
    slots: dict[int, set[int]] = {number: set() for number in nodes}
    for member in (each for instance in running for each in instance.members if each.node in taken):
        taken[member.node].update(member.devices)
        slots[member.node].add(member.slot)
    used = {instance.index for instance in running if instance.model == model}
    indices = [index for index in range(len(used) + count) if index not in used][:count]
    placed: list[Instance] = []
    for index in indices:
        room = [number for number in nodes if _devices(node) - len(taken[number]) >= size]
        if len(room) < spread:
            free = {number: _devices(node) - len(devices) for number, devices in taken.items()}
            raise _too_few_devices(entry, count, len(placed), free, (spread, size))
        room.sort(key=lambda number: -len(taken[number]))  # stable: else in the order of the nodes
        members = []
        for rank, number in enumerate(sorted(room[:spread])):
            slot = min(set(range(len(slots[number]) + 1)) - slots[number])
            (devices,) = _masks([size], node, taken[number])
            ports = _ports(max({slot, *slots[number]}) + 1, port_start, reserved_ports)[slot]
            members.append(Member(rank, number, slot, devices, _cpus(devices, node), *ports))
            taken[number].update(devices)
            slots[number].add(slot)
        placed.append(Instance(model, index, tuple(members)))
    return tuple(placed)


def nodes_needed(models: Sequence[ModelEntry], node: Node) -> int:
    """Return how many nodes `place` uses."""
    return sum(repeat for _, repeat in _pack(_groups(models, _devices(node)), _devices(node)))


def split(model: ModelEntry, devices: int) -> tuple[int, int]:
    """Return over how many nodes an instance goes and how many devices it takes on each.

    An instance that fits on a node stays there. Else it goes over as few nodes as split it evenly: whole
    data-parallel ranks where one fits on a node, even parts of each rank where none does. A pipeline stage stays
    on one node where it can: its tensor-parallel traffic is the heaviest.
    """
    if model.devices <= devices:
        return 1, model.devices
    rank, ranks = model.tensor_parallel_size * model.pipeline_parallel_size, model.data_parallel_size
    if rank <= devices:
        nodes = next(n for n in range(2, ranks + 1) if ranks % n == 0 and ranks // n * rank <= devices)
        return nodes, ranks // nodes * rank
    even = [n for n in range(2, rank + 1) if rank % n == 0 and rank // n <= devices]
    whole = (n for n in even if rank // n % model.tensor_parallel_size == 0)
    parts = next(whole, even[0])
    return ranks * parts, rank // parts


def _devices(node: Node) -> int:
    if node.devices is None:
        raise PlacementError(
            "the number of devices of a node is not known", hint="set `devices` in the platform's `node`"
        )
    return node.devices


def _groups(models: Sequence[ModelEntry], devices: int) -> list[_Group]:
    """Gather instances of one shape, the largest members first."""
    gathered: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, model in enumerate(models):
        spread, size = split(model, devices)
        gathered.setdefault((size, spread), []).extend((number, index) for index in range(model.instances))
    return [
        _Group(size, spread, tuple(gathered[size, spread])) for size, spread in sorted(gathered, reverse=True)
    ]


def _pack(groups: Sequence[_Group], devices: int) -> list[tuple[Pattern, int]]:
    """Return patterns and how often each is repeated: the shorter of two greedy packings.

    Both give each node the largest member left; one then prefers large members, the other a full node.
    Exact for one size. For mixes no proof, but tests compare the usual sizes with an exhaustive search.
    """
    packings = [_pack_by(choose, groups, devices) for choose in (_largest, _fullest)]
    return min(packings, key=lambda packing: sum(repeat for _, repeat in packing))


def _pack_by(
    choose: Callable[[Sequence[int], Sequence[int], int], Pattern], groups: Sequence[_Group], devices: int
) -> list[tuple[Pattern, int]]:
    sizes = [group.size for group in groups]
    left = [group.spread * len(group.instances) for group in groups]
    packing = []
    while any(left):
        # No more than one member of each instance: `_seat` relies on it to keep them on distinct nodes.
        limits = [min(count, len(group.instances)) for count, group in zip(left, groups, strict=True)]
        pattern = choose(sizes, limits, devices)
        repeat = min(count // taken for count, taken in zip(left, pattern, strict=True) if taken)
        left = [count - repeat * taken for count, taken in zip(left, pattern, strict=True)]
        packing.append((pattern, repeat))
    return packing


def _largest(sizes: Sequence[int], limits: Sequence[int], devices: int) -> Pattern:
    """Fill a node with as many of the largest as fit, then of the next (first-fit decreasing)."""
    pattern = []
    for size, limit in zip(sizes, limits, strict=True):
        pattern.append(min(limit, devices // size))
        devices -= pattern[-1] * size
    return tuple(pattern)


def _fullest(sizes: Sequence[int], limits: Sequence[int], devices: int) -> Pattern:
    """Give a node one of the largest, then leave as few devices free as possible."""
    must = next(group for group, limit in enumerate(limits) if limit)

    @cache
    def fill(group: int, free: int) -> tuple[int, Pattern]:
        if group == len(sizes):
            return 0, ()
        most = min(limits[group], free // sizes[group])
        options = (
            (taken, fill(group + 1, free - taken * sizes[group]))
            for taken in range(int(group == must), most + 1)
        )
        return max((taken * sizes[group] + used, (taken, *rest)) for taken, (used, rest) in options)

    return fill(0, devices)[1]


def _seat(group: _Group, offer: Sequence[tuple[int, _Seat]]) -> Iterator[Instance]:
    """Give each instance of a group its seats, all on distinct nodes."""
    count, spread = len(group.instances), group.spread
    shared = any(one == other for (one, _), (other, _) in pairwise(offer))
    for number, (model, index) in enumerate(group.instances):
        # Neighbouring nodes where a node has one seat for the group; else the seats are dealt round, and as
        # a node has at most `count` of them, nobody gets two on one node.
        taken = offer[number::count] if shared else offer[number * spread : (number + 1) * spread]
        members = tuple(Member(rank, node, *seat) for rank, (node, seat) in enumerate(taken))
        yield Instance(model, index, members)


def _layout(
    groups: Sequence[_Group], pattern: Pattern, node: Node, ports: Sequence[tuple[int, int]]
) -> list[tuple[int, _Seat]]:
    """Return (group, seat) for every slot of a node that holds this pattern."""
    wanted = [group for group, taken in enumerate(pattern) for _ in range(taken)]
    masks = _masks([groups[group].size for group in wanted], node)
    return [
        (group, _Seat(slot, mask, _cpus(mask, node), *ports[slot]))
        for slot, (group, mask) in enumerate(zip(wanted, masks, strict=True))
    ]


def _masks(sizes: Sequence[int], node: Node, taken: Collection[int] = ()) -> list[tuple[int, ...]]:
    """Choose disjoint devices, of those that are not taken, for members of these falling sizes; straddle sockets and cards last."""
    free = set(range(_devices(node))).difference(taken)
    known = [[device for device in socket if device in free] for socket in node.sockets]
    rest = free.difference(*known)
    sockets = [sorted(socket) for socket in (*known, rest) if socket]
    masks = []
    for size in sizes:
        mask: list[int] = []
        while len(mask) < size:
            need = size - len(mask)
            holding = [socket for socket in sockets if len(socket) >= need]
            socket = min(holding, key=len) if holding else max(sockets, key=len)
            chosen = _from_socket(socket, need, node.devices_per_card)
            socket[:] = [device for device in socket if device not in chosen]
            mask += chosen
        masks.append(tuple(sorted(mask)))
    return masks


def _from_socket(free: Sequence[int], need: int, per_card: int) -> list[int]:
    """Choose up to `need` of the free devices: the tightest card that holds what is left, else the fullest."""
    cards: dict[int, list[int]] = {}
    for device in free:
        cards.setdefault(device // per_card, []).append(device)
    chosen: list[int] = []
    while cards and len(chosen) < need:
        missing = need - len(chosen)
        holding = [card for card, devices in cards.items() if len(devices) >= missing]
        card = (
            min(holding, key=lambda at: len(cards[at]))
            if holding
            else max(cards, key=lambda at: len(cards[at]))
        )
        chosen += cards.pop(card)[:missing]
    return chosen


def _cpus(devices: Sequence[int], node: Node) -> tuple[int, ...]:
    """Return the CPUs beside these devices; none, so no binding, unless all of them have a list."""
    if max(devices) >= len(node.device_cpus):
        return ()
    lists = [parse_cpulist(node.device_cpus[device]) for device in devices]
    return tuple(sorted(set().union(*lists))) if all(lists) else ()


def _ports(slots: int, start: int, reserved: Collection[int]) -> list[tuple[int, int]]:
    """Return per slot the API port and the first of its PORT_STRIDE internal ports."""
    taken = set(reserved)
    api: list[int] = []
    port = start
    while len(api) < slots:
        if port not in taken:
            api.append(port)
        port += 1
    port = max(port, start + INTERNAL_OFFSET)
    internal: list[int] = []
    while len(internal) < slots:
        clash = taken.intersection(range(port, port + PORT_STRIDE))
        if clash:
            port = max(clash) + 1
        else:
            internal.append(port)
            port += PORT_STRIDE
    if slots and port - 1 > LAST_PORT:
        best = start - (port - 1 - LAST_PORT)
        raise PlacementError(
            f"{slots} servers on a node need the ports {start} to {api[-1]} and, from {internal[0]} on,"
            f" {slots} x {PORT_STRIDE} internal ones up to {port - 1}; the last port is {LAST_PORT}",
            hint=f"use a port_start of at most {best}" if best > 0 else "put fewer servers on a node",
        )
    return list(zip(api, internal, strict=True))


def _too_few_nodes(models: Sequence[ModelEntry], devices: int, nodes: int, available: int) -> PlacementError:
    needed = f"{nodes} {'node is' if nodes == 1 else 'nodes are'} needed"
    offered = f"{available} {'is' if available == 1 else 'are'} available"
    if len(models) == 1:
        demand = f"{_demand(models[0])}; a node has {devices}, so {_fit(models[0], devices)} and {needed}"
    else:
        demands = "; ".join(f"{_demand(model)}, {_fit(model, devices)}" for model in models)
        demand = f"{demands}; a node has {devices}, so together {needed}"
    return PlacementError(
        f"{demand}; {offered}",
        hint=f"ask for {nodes} nodes, or for fewer instances or smaller parallel sizes",
    )


def _too_few_devices(
    model: ModelEntry, count: int, placed: int, free: dict[int, int], shape: tuple[int, int]
) -> PlacementError:
    spread, size = shape
    devices = f"{size} {'device' if size == 1 else 'devices'}"
    each = f"{devices} on each of {spread} nodes" if spread > 1 else f"{devices} on one node"
    left = sorted((number for number in free.values() if number), reverse=True)
    if len(left) > 1:
        offered = f"{sum(left)} are free on {len(left)} nodes, {left[0]} at most on one"
    else:
        offered = f"{left[0]} {'is' if left[0] == 1 else 'are'} free on one node" if left else "none is free"
    fitting = f"only {placed} of them {'fits' if placed == 1 else 'fit'}: " if placed else ""
    more = "1 more instance takes" if count == 1 else f"{count} more instances take"
    return PlacementError(
        f"{more} {each} {'' if count == 1 else 'each '}for {model.name}; {fitting}{offered}",
        hint="`--new-job` submits a further job for them",
    )


def _demand(model: ModelEntry) -> str:
    sizes = (
        f"tensor {model.tensor_parallel_size} x pipeline {model.pipeline_parallel_size}"
        f" x data {model.data_parallel_size}"
    )
    devices = f"{model.devices} {'device' if model.devices == 1 else 'devices'}"
    if model.instances == 1:
        return f"1 instance of {model.model} takes {devices} ({sizes})"
    return f"{model.instances} instances of {model.model} take {devices} each ({sizes})"


def _fit(model: ModelEntry, devices: int) -> str:
    spread, size = split(model, devices)
    if spread > 1:
        return f"each is split evenly over {spread} nodes with {size} on each"
    count = devices // size
    return f"{count} {'fits' if count == 1 else 'fit'} per node"
