from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aegis.planner.search.pareto import front

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(POINTS)
def test_the_front_holds_what_nothing_dominates_and_the_first_of_equals(
    points: list[tuple[int, int]],
) -> None:
    first = np.array([point[0] for point in points], dtype=float)
    second = np.array([point[1] for point in points], dtype=float)
    expected = [
        index
        for index, point in enumerate(points)
        if point not in points[:index]
        and not any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)
    ]
    kept = front(first, second).tolist()
    assert sorted(kept) == expected
    assert kept == sorted(kept, key=lambda index: points[index][0])
