from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from aegis.errors import ConfigError
from aegis.planner.systems import load_system
from aegis.planner.tables.check import Neighbours, check_tables, find_contradictions
from aegis.planner.tables.slices import Slice

if TYPE_CHECKING:
    from aegis.planner.operations import Floats

H200 = load_system("h200_sxm")
N, K, M = (
    axis.ravel() for axis in np.meshgrid([1024, 4096], [1024, 4096], 2 ** np.arange(16), indexing="ij")
)
FAIR = 0.005 + 2e3 * M * N * K / 5e14


def tables(**latency: Floats) -> Neighbours:
    key = ("bfloat16",)
    return Neighbours(
        "h200_sxm", H200, {name: {"gemm": {key: Slice((N, K, M), ms)}} for name, ms in latency.items()}
    )


def test_tables_that_agree_are_left_alone() -> None:
    assert find_contradictions(tables(trtllm=FAIR, vllm=1.8 * FAIR, sglang=0.8 * FAIR)) == ()


def test_a_flat_table_is_found_against_its_neighbours_with_figures() -> None:
    flat = np.maximum(FAIR, 0.2)
    [found] = find_contradictions(tables(trtllm=FAIR, vllm=flat, sglang=1.1 * FAIR))
    assert (found.backend, found.operation, found.key) == ("vllm", "gemm", ("bfloat16",))
    assert found.points == int((flat > 3 * 1.1 * FAIR).sum())
    assert found.factor > 10
    assert (
        "vllm on h200_sxm: the table of gemm (bfloat16) is slower than with sglang and trtllm" in found.what
    )
    assert f"at {found.points} of 64 points" in found.what


def test_a_slow_table_that_one_neighbour_shares_is_left_alone() -> None:
    slow = np.maximum(FAIR, 0.2)
    assert find_contradictions(tables(trtllm=slow, vllm=slow, sglang=FAIR)) == ()


def test_latency_that_falls_as_the_work_grows_is_found() -> None:
    saw = np.where(M % 3 == 1, 3.0, 1.0) * (1 + FAIR)
    [found] = find_contradictions(tables(vllm=saw))
    assert "falls to less than half as m grows" in found.what


def test_products_faster_than_the_hardware_are_found() -> None:
    [found] = find_contradictions(tables(vllm=2e3 * M * N * K / 2e15))
    assert "is faster than the hardware" in found.what
    assert found.factor == pytest.approx(2.02, abs=0.01)


def test_the_flat_fp8_block_table_of_vllm_is_found_where_it_ships() -> None:
    found = {(each.backend, each.operation, each.key): each for each in check_tables("b200_sxm")}
    worst = found["vllm", "gemm", ("fp8_block",)]
    assert worst.factor > 10
    assert worst.points > 20_000


def test_an_unknown_system_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown system"):
        check_tables("h200_sx")
