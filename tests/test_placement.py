from __future__ import annotations

import math
import re
from collections import defaultdict
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.errors import PlacementError
from aegis.placement import (
    INTERNAL_OFFSET,
    LAST_PORT,
    PORT_STRIDE,
    Instance,
    Member,
    Placement,
    nodes_needed,
    place,
    place_more,
    split,
)
from aegis.spec.deployment import ModelEntry
from aegis.spec.platform import Node

if TYPE_CHECKING:
    from random import Random

AURORA = Node(
    devices=12,
    devices_per_card=2,
    sockets=((0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11)),
    device_cpus=tuple(f"{first}-{first + 7}" for first in (*range(1, 49, 8), *range(53, 101, 8))),
)


def model(tp: int = 1, *, pp: int = 1, dp: int = 1, instances: int = 1, name: str = "M") -> ModelEntry:
    return ModelEntry(
        model=name,
        instances=instances,
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        data_parallel_size=dp,
    )


def masks(placement: Placement) -> list[tuple[int, tuple[int, ...]]]:
    return [(member.node, member.devices) for instance in placement.instances for member in instance.members]


def by_node(placement: Placement) -> dict[int, list[Member]]:
    members: dict[int, list[Member]] = defaultdict(list)
    for instance in placement.instances:
        for member in instance.members:
            members[member.node].append(member)
    return members


# Nodes needed


@pytest.mark.parametrize(
    ("models", "devices", "nodes"),
    [
        ([model(8, instances=3)], 12, 3),
        ([model(6, instances=2)], 12, 1),
        ([model(5, instances=5)], 12, 3),
        ([model(7, instances=2)], 12, 2),
        ([model(1, instances=13)], 12, 2),
        ([model(8, instances=7), model(4, instances=7)], 12, 7),
        ([model(4, instances=7), model(8, instances=7)], 12, 7),
        ([model(6, instances=2), model(1)], 12, 2),
        ([model(6), model(4, instances=3), model(3, instances=2)], 12, 2),
        ([model(4, pp=2, instances=3)], 4, 6),
        ([model(16), model(4, instances=2)], 12, 2),
        ([], 12, 0),
    ],
)
def test_nodes_needed(models: list[ModelEntry], devices: int, nodes: int) -> None:
    node = Node(devices=devices)
    assert nodes_needed(models, node) == nodes
    assert place(models, node, port_start=8000, available_nodes=nodes).nodes == nodes


@pytest.mark.parametrize(
    ("entry", "devices", "expected"),
    [
        (model(12), 12, (1, 12)),
        (model(16), 12, (2, 8)),
        (model(18), 12, (2, 9)),
        (model(24), 12, (2, 12)),
        (model(8, pp=2), 12, (2, 8)),
        (model(13), 12, (13, 1)),
        (model(8, dp=4), 12, (4, 8)),  # one rank of 8 per node
        (model(4, dp=6), 12, (2, 12)),  # three ranks of 4 per node
        (model(4, dp=5), 12, (5, 4)),  # five ranks divide over no fewer nodes
        (model(16, dp=2), 12, (4, 8)),  # each rank over two nodes
    ],
)
def test_instances_larger_than_a_node_are_split_evenly(
    entry: ModelEntry, devices: int, expected: tuple[int, int]
) -> None:
    assert split(entry, devices) == expected


def fewest_nodes(sizes: tuple[int, ...], counts: tuple[int, ...], devices: int) -> int:
    """Search all packings."""

    @cache
    def search(left: tuple[int, ...]) -> int:
        if not any(left):
            return 0
        first = next(at for at, count in enumerate(left) if count)
        options = product(*(range(min(n, devices // size) + 1) for n, size in zip(left, sizes, strict=True)))
        fitting = [
            taken
            for taken in options
            if taken[first] and sum(n * size for n, size in zip(taken, sizes, strict=True)) <= devices
        ]
        return 1 + min(search(tuple(n - t for n, t in zip(left, taken, strict=True))) for taken in fitting)

    return search(counts)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([4, 8, 12]),
    st.dictionaries(st.sampled_from([1, 2, 3, 4, 6, 8, 12]), st.integers(1, 4), min_size=1, max_size=4),
)
def test_mixes_of_usual_sizes_take_as_few_nodes_as_an_exhaustive_search(
    devices: int, mix: dict[int, int]
) -> None:
    counts = {size: count for size, count in mix.items() if size <= devices}
    models = [model(size, instances=count) for size, count in counts.items()]
    assert nodes_needed(models, Node(devices=devices)) == fewest_nodes(
        tuple(counts), tuple(counts.values()), devices
    )


# Devices and CPUs


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([model(4, instances=3)], [(0, 1, 2, 3), (6, 7, 8, 9), (4, 5, 10, 11)]),
        ([model(8), model(4)], [(0, 1, 2, 3, 4, 5, 6, 7), (8, 9, 10, 11)]),
        ([model(2, instances=6)], [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]),
        ([model(6, instances=2)], [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11)]),
        ([model(3, instances=4)], [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]),
        ([model(5, instances=2), model(2)], [(0, 1, 2, 3, 4), (6, 7, 8, 9, 10), (5, 11)]),
        ([model(1), model(2), model(4)], [(6,), (4, 5), (0, 1, 2, 3)]),
    ],
)
def test_instances_keep_to_a_socket_and_a_card(
    models: list[ModelEntry], expected: list[tuple[int, ...]]
) -> None:
    placement = place(models, AURORA, port_start=8000)
    assert masks(placement) == [(0, mask) for mask in expected]


def test_cpus_are_those_beside_the_devices() -> None:
    placement = place([model(6, instances=2)], AURORA, port_start=8000)
    first, second = (instance.members[0] for instance in placement.instances)
    assert first.cpus == tuple(range(1, 49))
    assert second.cpus == tuple(range(53, 101))


@pytest.mark.parametrize("cpus", [(), ("0-3",), ("0-3", "")])
def test_no_binding_unless_every_device_has_cpus(cpus: tuple[str, ...]) -> None:
    placement = place([model(2)], Node(devices=2, device_cpus=cpus), port_start=8000)
    assert placement.instances[0].members[0].cpus == ()


def test_sockets_of_a_profile_may_name_more_devices_than_were_found() -> None:
    node = Node(devices=3, sockets=((0, 1), (4, 5)))
    assert masks(place([model(1, instances=3)], node, port_start=8000)) == [(0, (2,)), (0, (0,)), (0, (1,))]


# Ports


def test_reserved_ports_are_skipped() -> None:
    placement = place([model(instances=3)], Node(devices=4), port_start=8470, reserved_ports=[8471])
    assert [instance.members[0].port for instance in placement.instances] == [8470, 8472, 8473]


def test_internal_ports_step_over_a_reserved_port() -> None:
    placement = place([model(instances=2)], Node(devices=2), port_start=7400, reserved_ports=[8471])
    assert [instance.members[0].internal_port for instance in placement.instances] == [
        8400,
        8472,
    ]


def test_ports_beyond_the_last_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(PlacementError) as caught:
        place([model(instances=12)], Node(devices=12), port_start=64000)
    assert caught.value.message == (
        "12 servers on a node need the ports 64000 to 64011 and, from 65000 on, 12 x 64 internal ones up to 65767;"
        " the last port is 65535"
    )
    assert caught.value.hint == "use a port_start of at most 63768"
    assert place([model(instances=12)], Node(devices=12), port_start=63768).nodes == 1


# Refusals


@pytest.mark.parametrize(
    ("models", "available", "message"),
    [
        (
            [model(8, instances=3)],
            2,
            (
                "3 instances of M take 8 devices each (tensor 8 x pipeline 1 x data 1); a node has 12, so 1 fits"
                " per node and 3 nodes are needed; 2 are available"
            ),
        ),
        (
            [model(8, pp=2)],
            1,
            (
                "1 instance of M takes 16 devices (tensor 8 x pipeline 2 x data 1); a node has 12, so each is split"
                " evenly over 2 nodes with 8 on each and 2 nodes are needed; 1 is available"
            ),
        ),
        (
            [model(6, instances=2, name="A"), model(1, name="B")],
            1,
            (
                "2 instances of A take 6 devices each (tensor 6 x pipeline 1 x data 1), 2 fit per node;"
                " 1 instance of B takes 1 device (tensor 1 x pipeline 1 x data 1), 12 fit per node;"
                " a node has 12, so together 2 nodes are needed; 1 is available"
            ),
        ),
    ],
)
def test_too_few_nodes_are_refused_with_the_arithmetic(
    models: list[ModelEntry], available: int, message: str
) -> None:
    with pytest.raises(PlacementError, match=re.escape(message)):
        place(models, AURORA, port_start=8000, available_nodes=available)


def test_an_unknown_number_of_devices_is_refused() -> None:
    with pytest.raises(PlacementError, match="not known"):
        place([model()], Node(), port_start=8000)


# Properties

entries = st.builds(
    lambda tp, pp, dp, instances: model(tp, pp=pp, dp=dp, instances=instances),
    st.integers(1, 16),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 12),
)
nodes = st.integers(1, 16).flatmap(
    lambda devices: st.builds(
        lambda per_card, cut: Node(
            devices=devices,
            devices_per_card=per_card,
            sockets=(tuple(range(cut)), tuple(range(cut, devices))),
            device_cpus=tuple(str(device) for device in range(devices)),
        ),
        st.sampled_from([1, 2, 4]),
        st.integers(0, devices),
    )
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(entries, min_size=1, max_size=4), nodes, st.integers(1, 60000), st.sets(st.integers(1, 65535))
)
def test_every_placement_is_valid(
    models: list[ModelEntry], node: Node, port_start: int, reserved: set[int]
) -> None:
    assert node.devices
    try:
        placement = place(models, node, port_start=port_start, reserved_ports=reserved)
    except PlacementError as error:
        assert "the last port is" in error.message  # noqa: PT017 - large starts may run out of ports
        return
    asked = [(number, index) for number, entry in enumerate(models) for index in range(entry.instances)]
    assert [(instance.model, instance.index) for instance in placement.instances] == asked
    for instance in placement.instances:
        check_members(instance.members, models[instance.model], node)
    members = by_node(placement)
    assert sorted(members) == list(range(placement.nodes))
    for seated in members.values():
        check_node(seated, port_start, reserved)
    total = sum(entry.devices * entry.instances for entry in models)
    assert math.ceil(total / node.devices) <= placement.nodes == nodes_needed(models, node)
    assert place(models, node, port_start=port_start, reserved_ports=reserved) == placement


def check_members(members: tuple[Member, ...], entry: ModelEntry, node: Node) -> None:
    spread, size = split(entry, node.devices or 0)
    assert [member.rank for member in members] == list(range(spread))
    assert len({member.node for member in members}) == spread
    assert spread * size == entry.devices
    rank = entry.tensor_parallel_size * entry.pipeline_parallel_size
    assert size % rank == 0 or rank % size == 0  # whole data-parallel ranks, or even parts of one
    for member in members:
        assert len(member.devices) == size
        assert member.devices == tuple(sorted(member.devices)) == member.cpus
        assert set(member.devices) <= set(range(node.devices or 0))


def check_node(members: list[Member], port_start: int, reserved: set[int]) -> None:
    devices = [device for member in members for device in member.devices]
    assert len(devices) == len(set(devices))
    members = sorted(members, key=lambda member: member.slot)
    assert [member.slot for member in members] == list(range(len(members)))
    api = [member.port for member in members]
    internal = [member.internal_port + at for member in members for at in range(PORT_STRIDE)]
    assert len(set(api) | set(internal)) == len(api) + len(internal)
    assert not reserved.intersection(api)
    assert not reserved.intersection(internal)
    assert min(api) >= port_start
    assert min(internal) >= port_start + INTERNAL_OFFSET
    assert max(internal) <= LAST_PORT


@settings(deadline=None)
@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 200))
def test_one_size_takes_exactly_the_nodes_it_must(devices: int, tp: int, instances: int) -> None:
    entry, node = model(tp, instances=instances), Node(devices=devices)
    spread, size = split(entry, devices)
    seats = min(devices // size, instances)  # no two members of an instance on a node
    assert nodes_needed([entry], node) == math.ceil(instances * spread / seats)


@settings(deadline=None)
@given(nodes, st.integers(1, 16), st.integers(1, 16))
def test_one_size_straddles_sockets_only_when_no_socket_is_left(node: Node, tp: int, instances: int) -> None:
    assert node.devices
    if tp > node.devices:
        return
    room = sum(len(socket) // tp for socket in node.sockets)
    for members in by_node(place([model(tp, instances=instances)], node, port_start=8000)).values():
        whole = sum(any(set(member.devices) <= set(socket) for socket in node.sockets) for member in members)
        assert whole == min(room, len(members))


def test_the_members_of_an_instance_are_neighbours_where_nodes_are_not_shared() -> None:
    placement = place([model(16, instances=3)], AURORA, port_start=8000)
    assert [[member.node for member in instance.members] for instance in placement.instances] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]


def test_thousands_of_nodes_are_placed_in_order() -> None:
    placement = place([model(12, instances=3000)], AURORA, port_start=8000)
    assert placement.nodes == 3000
    assert [instance.members[0].node for instance in placement.instances] == list(range(3000))


# Beside what runs


def more(
    running: list[Instance], number: int, entry: ModelEntry, count: int, nodes: list[int], **keys: Any
) -> list[Instance]:
    node = keys.pop("node", Node(devices=8))
    return list(place_more(number, entry, count, node, running, nodes=nodes, port_start=8000, **keys))


SIZES = st.sampled_from([1, 2, 3, 4, 8, 12, 16])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(SIZES, st.integers(1, 4)), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=5),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
)
def test_what_is_added_never_touches_what_runs(
    mix: list[tuple[int, int]], wishes: list[tuple[int, int]], spare: int, random: Random
) -> None:
    models = [model(size, instances=count, name=f"M{at}") for at, (size, count) in enumerate(mix)]
    first = place(models, AURORA, port_start=8000, reserved_ports={8003, 9100})
    running = list(first.instances)
    nodes = list(range(first.nodes + spare))
    for at, count in wishes:
        number = at % len(models)
        for gone in random.sample(running, k=random.randint(0, len(running) // 2)):
            running.remove(gone)
        keys = {"node": AURORA, "reserved_ports": {8003, 9100}}
        try:
            new = more(running, number, models[number], count, nodes, **keys)
        except PlacementError:
            continue
        assert len(new) == count
        assert not {(each.model, each.index) for each in new} & {(each.model, each.index) for each in running}
        spread, size = split(models[number], 12)
        for each in new:
            assert len(each.members) == spread
            assert len({member.node for member in each.members}) == spread
            assert [member.rank for member in each.members] == list(range(spread))
            assert {len(member.devices) for member in each.members} == {size}
        running += new
        held = by_node(Placement(len(nodes), tuple(running)))
        assert set(held) <= set(nodes)
        for members in held.values():
            devices = [device for member in members for device in member.devices]
            assert len(set(devices)) == len(devices)
            assert set(devices) <= set(range(12))
            ports = [
                port
                for member in members
                for port in (member.port, *range(member.internal_port, member.internal_port + PORT_STRIDE))
            ]
            assert len(set(ports)) == len(ports)
            assert not {8003, 9100} & set(ports)


def test_nodes_in_use_are_filled_before_a_spare_one_is_begun() -> None:
    running = list(place([model(4)], Node(devices=8), port_start=8000).instances)
    new = more(running, 0, model(4), 2, [0, 1])
    assert [(each.index, each.members[0].node) for each in new] == [(1, 0), (2, 1)]
    assert new[0].members[0].devices == (4, 5, 6, 7)
    assert (new[0].members[0].port, new[1].members[0].port) == (8001, 8000)


def test_free_numbers_and_slots_are_used_again() -> None:
    running = list(place([model(2, instances=3)], Node(devices=8), port_start=8000).instances)
    (new,) = more([running[0], running[2]], 0, model(2), 1, [0])
    assert new == running[1]


def test_an_instance_over_nodes_is_added_over_nodes() -> None:
    running = list(place([model(4)], Node(devices=8), port_start=8000).instances)
    (new,) = more(running, 1, model(16), 1, [0, 1, 2])
    assert [member.node for member in new.members] == [1, 2]


@pytest.mark.parametrize(
    ("entry", "count", "nodes", "said"),
    [
        (
            model(4),
            2,
            [0],
            "2 more instances take 4 devices on one node each for M; only 1 of them fits: none is free",
        ),
        (
            model(8),
            1,
            [0, 1],
            "1 more instance takes 8 devices on one node for M; 5 are free on 2 nodes, 4 at most on one",
        ),
        (
            model(16),
            1,
            [0],
            "1 more instance takes 8 devices on each of 2 nodes for M; 4 are free on one node",
        ),
        (model(1), 1, [], "1 more instance takes 1 device on one node for M; none is free"),
    ],
)
def test_what_is_free_is_said_where_it_does_not_fit(
    entry: ModelEntry, count: int, nodes: list[int], said: str
) -> None:
    seven = Instance(1, 0, (Member(0, 1, 0, tuple(range(7)), (), 8000, 9000),))
    running = [*place([model(4)], Node(devices=8), port_start=8000).instances, seven]
    with pytest.raises(PlacementError) as error:
        more(running, 0, entry, count, nodes)
    assert error.value.message == said
    assert "--new-job" in str(error.value.hint)
