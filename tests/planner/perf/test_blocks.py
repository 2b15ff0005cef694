"""Blocks that were measured as one piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest
from msgspec.structs import replace

from aegis.planner.operations import Measured as Block
from aegis.planner.operations import NoData, query
from aegis.planner.perf.measured import Measured
from aegis.planner.systems import load_system
from aegis.planner.tables.slices import Slice
from aegis.planner.tables.store import open_tables

if TYPE_CHECKING:
    from aegis.planner.problem import DatabaseMode
    from aegis.planner.tables.slices import Key

Rows: TypeAlias = "dict[tuple[str, Key], list[tuple[float, ...]]]"

DELTA = Block(
    name="delta",
    table="gdn",
    phase="context",
    key=(
        ("kernel", "chunk_gated_delta_rule"),
        ("phase", "context"),
        ("d_model", 5120),
        ("k_heads", 8),
        ("k_size", 128),
        ("v_heads", 24),
        ("v_size", 128),
        ("d_conv", 4),
    ),
)
MAMBA = Block(
    name="mamba",
    table="mamba2",
    phase="context",
    key=(
        ("kernel", "mamba_chunk_scan_combined"),
        ("phase", "context"),
        ("d_model", 8192),
        ("d_state", 256),
        ("d_conv", 4),
        ("heads", 256),
        ("head_size", 64),
        ("groups", 8),
        ("chunk", 128),
    ),
)
SPARSE = Block(
    name="sparse",
    table="dsa_context_module",
    phase="context",
    key=(
        ("lane", "full"),
        ("fmha", "bfloat16"),
        ("kv_cache", "fp8"),
        ("gemm", "fp8_block"),
        ("architecture", "DeepseekV32ForCausalLM"),
        ("heads", 16),
    ),
)
BLOCKS = [DELTA, MAMBA, SPARSE]
BACKEND = {"gdn": "trtllm", "mamba2": "trtllm", "dsa_context_module": "vllm"}


class Invented:
    """Tables of a few points."""

    system, lossless = "h200_sxm", True

    def __init__(self, slices: Rows, backend: str, version: str) -> None:
        self.slices, self.backend, self.version = slices, backend, version

    def keys(self, operation: str) -> list[Key]:
        return [key for name, key in self.slices if name == operation]

    def load(self, operation: str, key: Key) -> Slice | None:
        rows = self.slices.get((operation, key))
        if rows is None:
            return None
        *axes, latency = (np.array(column) for column in zip(*rows, strict=True))
        return Slice(tuple(axis.astype(np.int64) for axis in axes), latency.astype(float))


def invented(slices: Rows, backend: str = "sglang", version: str = "1") -> Measured:
    return Measured(load_system("h200_sxm"), Invented(slices, backend, version))


def shipped(backend: str, mode: DatabaseMode = "SILICON") -> Measured:
    return Measured(load_system("h200_sxm"), open_tables("h200_sxm", backend), mode)


def values(block: Block) -> Key:
    return tuple(value for column, value in block.key if column != "heads" or block.table == "mamba2")


def named(block: Block, **changes: str) -> Block:
    return replace(block, key=tuple((column, changes.get(column, value)) for column, value in block.key))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
@pytest.mark.parametrize("mode", ["SILICON", "SOL"])
def test_many_points_are_answered_as_each_by_itself(block: Block, mode: DatabaseMode) -> None:
    at = query(
        tokens=1,
        batch=np.array([[1], [3], [64]]),
        length=np.array([1, 700, 4096, 90_000]),
        prefix=np.array([0, 512, 0, 0]),
    )
    measured = shipped(BACKEND[block.table], mode)
    whole = measured.latency(block, at)
    assert whole.shape == (3, 4)
    for index in np.ndindex(whole.shape):
        one = type(at)(*(np.broadcast_to(axis, whole.shape)[index] for axis in at))
        assert whole[index] == pytest.approx(float(measured.latency(block, one)), rel=1e-9)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_measured_blocks_are_no_faster_than_light_and_not_far_from_it(block: Block) -> None:
    at = query(tokens=1, batch=np.array([[1], [4]]), length=np.array([2048, 8192]))
    backend = BACKEND[block.table]
    ratio = shipped(backend).latency(block, at) / shipped(backend, "SOL").latency(block, at)
    assert (ratio > 0.9).all()
    assert (ratio < 60).all()


def test_decode_kernels_are_looked_up_over_the_batch_alone() -> None:
    decode = replace(named(DELTA, kernel="causal_conv1d_update", phase="generation"), phase="generation")
    here = invented({("gdn", values(decode)): [(1, 1, 1.0), (9, 1, 2.0)]})
    got = here.latency(
        decode, query(tokens=1, batch=np.array([1, 5, 9, 18]), length=np.array([10, 10, 99, 99]))
    )
    assert got[:3] == pytest.approx([1.0, 1.5, 2.0])
    assert got[3] == pytest.approx(4.0)  # twice the traffic


def test_decode_kernels_of_mamba_are_taken_at_the_speed_of_light() -> None:
    decode = replace(named(MAMBA, kernel="selective_state_update", phase="generation"), phase="generation")
    at = query(tokens=1, batch=np.array([1, 64]), length=777)
    assert (shipped("trtllm").latency(decode, at) == shipped("trtllm", "SOL").latency(decode, at)).all()


def test_other_sizes_of_a_mamba_of_the_same_width_stand_in() -> None:
    at = query(tokens=1, batch=2, length=100)
    other = tuple(99 if value == 128 else value for value in values(MAMBA))
    here = invented({("mamba2", other): [(2, 100, 3.0)]})
    assert float(here.latency(MAMBA, at)) == 3.0
    assert invented({}).latency(MAMBA, at) == shipped("trtllm", "SOL").latency(MAMBA, at)


def test_a_kernel_that_was_built_one_way_answers_for_it_and_several_ways_for_nothing() -> None:
    at = query(tokens=1, batch=2, length=100)

    def built(*ways: str) -> float:
        rows: Rows = {
            ("gdn", (f"chunk_gated_delta_rule_{way}", *values(DELTA)[1:])): [(2, 100, 3.0)] for way in ways
        }
        return float(invented(rows, "vllm", "0.24.0").latency(DELTA, at))

    light = float(shipped("trtllm", "SOL").latency(DELTA, at))
    assert built("triton") == 3.0
    assert built("triton", "cutedsl") == built() == light


def test_layers_without_an_indexer_count_as_full_ones_where_none_was_measured() -> None:
    at = query(tokens=1, batch=2, length=100)
    full: Rows = {("dsa_context_module", values(SPARSE)): [(16, 0, 100, 2, 3.0)]}
    skip: Rows = {("dsa_context_module", ("skip", *values(SPARSE)[1:])): [(16, 0, 100, 2, 2.0)]}
    layer = named(SPARSE, lane="skip")
    assert float(invented(full).latency(layer, at)) == 3.0
    assert float(invented(full | skip).latency(layer, at)) == 2.0
    assert float(invented(full | skip).latency(SPARSE, at)) == 3.0


def test_what_nobody_knows_has_no_data() -> None:
    at = query(tokens=1, batch=2, length=100)
    for unknown in (
        replace(SPARSE, table="no_such_module"),
        named(SPARSE, architecture="SomeoneElse"),
        named(SPARSE, gemm="int4_wo"),
    ):
        with pytest.raises(NoData, match="sparse"):
            shipped("trtllm").latency(unknown, at)
