"""Systems that nobody measured: what others say of them, where that helps."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from aegis.planner.silicon.elsewhere import Elsewhere, of_new_systems
from aegis.planner.silicon.fitted import fitted
from aegis.planner.silicon.kriging import Neighbours, Residual, Table
from tests.planner.silicon.test_kriging import AT, HERE, KERNEL


def rows(engine: str, said: float, left: float) -> list[Elsewhere]:
    return [Elsewhere(engine, said, left, 0.1)] * 20


def test_engines_whose_rows_say_nothing_of_another_system_are_not_corrected_there() -> None:
    found = of_new_systems(KERNEL, [*rows("sglang", 0.3, 0.4), *rows("vllm", 0.3, 0.1)])
    assert found.apart == ("vllm",)
    none = of_new_systems(KERNEL, rows("sglang", 0.3, 0.4))
    assert none.apart == ()
    # errors are one standard deviation of what is told: 80 % of a normal distribution lie within 1.28 of them
    assert found.further == none.further == pytest.approx(1 / 1.2816, abs=1e-3)


def test_such_an_engine_is_corrected_where_its_system_was_measured() -> None:
    table = Table([Residual(id="", place=HERE, at=AT, left=0.5)])
    apart = Neighbours(replace(KERNEL, apart=("vllm",)), table, [0])
    together = Neighbours(KERNEL, table, [0])
    there, at = replace(HERE, system="a100_sxm"), np.array([AT])
    assert apart.read(HERE, at).mean == together.read(HERE, at).mean > 0
    assert together.read(there, at).mean > 0
    assert apart.read(there, at).mean == 0
    assert apart.read(there, at).spread == together.read(there, at).spread
    other = replace(there, backend="sglang")
    assert apart.read(other, at).mean == together.read(other, at).mean > 0


def test_what_is_carried_along_says_how_sure_new_systems_are() -> None:
    for errors in (fitted().ttft, fitted().tpot):
        for kernel in errors.kernels.values():
            assert kernel.further > 1
            assert set(kernel.apart) < {"trtllm", "vllm", "sglang"}
