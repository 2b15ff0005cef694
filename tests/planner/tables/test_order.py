"""In which order sizes of GEMMs were measured."""

from __future__ import annotations

import numpy as np

from aegis.planner.tables.importing.order import gemm_order


def test_sizes_come_by_the_first_row_of_m_then_of_n_then_of_k() -> None:
    rows = [
        ("fp8", 8, 20, 300),
        ("fp8", 1, 10, 100),  # m = 8 was seen first, so this waits
        ("fp8", 8, 10, 200),
        ("fp8", 8, 20, 100),  # with the n of the first row
        ("fp8", 8, 10, 100),
        ("bfloat16", 1, 5, 5),
    ]
    quant, m, n, k = (np.array(column) for column in zip(*rows, strict=True))
    found = gemm_order({"quant": quant, "m": m, "n": n, "k": k})
    assert found["bfloat16",].latency.tolist() == [1]
    places = dict(
        zip(
            zip(*(axis.tolist() for axis in found["fp8",].axes), strict=True),
            found["fp8",].latency,
            strict=True,
        )
    )
    assert places == {(20, 300): 1, (20, 100): 2, (10, 200): 3, (10, 100): 4}
