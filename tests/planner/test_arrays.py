from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aegis.planner.arrays import distinct


@given(st.lists(st.integers(-5, 5)))
def test_values_come_sorted_and_once(values: list[int]) -> None:
    assert distinct(np.array(values, dtype=np.int64)).tolist() == sorted(set(values))


def test_any_shape_and_kind_of_numbers_will_do() -> None:
    assert distinct(np.array([[2.5, 1.0], [1.0, 2.5]])).tolist() == [1.0, 2.5]
