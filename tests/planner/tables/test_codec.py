from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.planner.tables.codec import CodecError, decode, encode
from aegis.planner.tables.slices import Slice

latencies = st.one_of(st.just(0.0), st.floats(1e-7, 1e7))
points = st.tuples(st.integers(0, 2**40), st.integers(1, 9), st.integers(1, 10**6))


@st.composite
def slices(draw: st.DrawFn) -> Slice:
    table = draw(st.dictionaries(points, latencies, max_size=60))
    rows = sorted(table)
    axes = tuple(np.array([row[axis] for row in rows], dtype=np.int64) for axis in range(3))
    return Slice(axes, np.array([table[row] for row in rows], dtype=np.float64))


def same_axes(first: Slice, second: Slice) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first.axes, second.axes, strict=True))


@given(slices())
def test_a_lossless_slice_comes_back_to_the_last_bit(rows: Slice) -> None:
    found = decode(encode(rows, lossless=True))
    assert same_axes(found, rows)
    assert found.latency.tobytes() == rows.latency.tobytes()


@given(slices())
def test_a_lossy_slice_comes_back_within_a_ten_thousandth(rows: Slice) -> None:
    found = decode(encode(rows, lossless=False))
    assert same_axes(found, rows)
    np.testing.assert_allclose(found.latency, rows.latency, rtol=1e-4, atol=0)


@settings(max_examples=50)
@given(slices(), st.data())
def test_bytes_that_are_cut_short_are_an_error(rows: Slice, data: st.DataObject) -> None:
    blob = encode(rows, lossless=False)
    with pytest.raises(CodecError):
        decode(blob[: data.draw(st.integers(0, len(blob) - 1))])
