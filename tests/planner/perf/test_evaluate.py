"""Chains of operations."""

from __future__ import annotations

import numpy as np
import pytest

from aegis.planner.operations import Fallback, Leaf, Memory, NoData, Overlap, Query, query
from aegis.planner.perf.evaluate import evaluate, total
from aegis.planner.systems import System, load_system


class Ideal:
    """Takes as many ms as a memory operation moves bytes; knows nothing of negative sizes."""

    notes: tuple[str, ...] = ()

    @property
    def system(self) -> System:
        return load_system("h200_sxm")

    def latency(self, operation: Leaf, at: Query) -> np.ndarray:
        assert isinstance(operation, Memory)
        if operation.bytes_per_token < 0:
            raise NoData("unknown")
        return operation.bytes_per_token * at.tokens.astype(float)


AT = query(tokens=np.array([1, 10]), batch=np.array([[1], [2]]), length=5)


def memory(ms: float, count: float = 1) -> Memory:
    return Memory(name="m", bytes_per_token=ms, count=count)


def test_counts_multiply_and_chains_add_up_in_the_shape_of_the_query() -> None:
    got = total((memory(1, 2), memory(3)), Ideal(), AT)
    assert got.tolist() == [[5, 50], [5, 50]]
    assert total((), Ideal(), AT).tolist() == [[0, 0], [0, 0]]


def test_of_two_chains_at_the_same_time_the_longer_one_counts() -> None:
    both = Overlap(name="o", count=2, first=(memory(1), memory(1)), second=(memory(1, 3),))
    assert evaluate(both, Ideal(), AT).tolist() == [[6, 60], [6, 60]]


def test_what_is_not_in_the_tables_gives_way_to_what_stands_in_for_it() -> None:
    known = Fallback(name="f", primary=(memory(1),), otherwise=(memory(7),))
    unknown = Fallback(name="f", primary=(memory(1), memory(-1)), otherwise=(memory(3), memory(4)))
    assert evaluate(known, Ideal(), AT)[0].tolist() == [1, 10]
    assert evaluate(unknown, Ideal(), AT)[0].tolist() == [7, 70]
    with pytest.raises(NoData):
        evaluate(Fallback(name="f", primary=(memory(-1),), otherwise=(memory(-1),)), Ideal(), AT)
