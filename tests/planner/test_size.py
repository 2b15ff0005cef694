from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.planner.problem import Targets
from aegis.planner.size import Need, nodes_for, size
from tests.planner.search.test_pick import candidate


@pytest.mark.parametrize(
    ("workers", "nodes"),
    [
        ([(1, 8)], 2),
        ([(3, 2)], 2),  # 3 + 3 do not fit in 4
        ([(3, 2), (1, 2)], 2),  # but the small ones do, beside them
        ([(4, 1), (1, 4)], 2),
        ([(8, 3)], 6),  # over two nodes each
        ([(16, 1), (2, 1)], 5),
        ([], 0),
    ],
)
def test_workers_fill_nodes_of_four(workers: list[tuple[int, int]], nodes: int) -> None:
    assert nodes_for(workers, 4) == nodes


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 30)), min_size=1, max_size=3), st.integers(1, 12)
)
def test_nodes_suffice_and_are_not_wasted(workers: list[tuple[int, int]], per_node: int) -> None:
    nodes = nodes_for(workers, per_node)
    assert nodes * per_node >= sum(gpus * count for gpus, count in workers)
    assert nodes <= sum(count * -(-gpus // per_node) for gpus, count in workers)


FAST = candidate(2, throughput=500, tpot=10)  # 1 request/s on 2 GPUs
SLOW = candidate(1, throughput=900, tpot=30)  # 1 request/s on 1 GPU


def test_the_fewest_nodes_that_meet_the_targets_are_found() -> None:
    need = Need(rate=6.5, requests=1_000_000)
    loose = size([FAST, SLOW], need=need, targets=Targets(), gpus_per_node=4)
    strict = size([FAST, SLOW], need=need, targets=Targets(tpot=20), gpus_per_node=4)
    assert loose is not None
    assert strict is not None
    assert (loose.candidate, loose.replicas, loose.nodes) == (SLOW, 7, 2)
    assert (strict.candidate, strict.replicas, strict.gpus, strict.nodes) == (FAST, 7, 14, 4)
    assert strict.node_hours == pytest.approx(1_000_000 / 6.5 / 3600 * 4)


def test_headroom_asks_for_more() -> None:
    found = size([SLOW], need=Need(rate=6, headroom=0.25), targets=Targets(), gpus_per_node=4)
    assert found is not None
    assert found.replicas == 8


def test_where_nothing_meets_the_targets_there_is_no_size() -> None:
    assert size([FAST, SLOW], need=Need(rate=1), targets=Targets(ttft=1), gpus_per_node=4) is None
