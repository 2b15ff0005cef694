"""The tables that the project ships: what is there, how large, and that a few rows are those of the origin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aegis.planner.systems import load_system
from aegis.planner.tables.slices import LAYOUTS
from aegis.planner.tables.store import BUILT_IN, open_tables, read_tables, shipped

BACKENDS = {"trtllm": "1.3.0rc20", "vllm": "0.24.0", "sglang": "0.5.14"}
VERSIONS = {
    **{
        (system, backend): version
        for system in ("h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200", "gb300", "l40s")
        for backend, version in BACKENDS.items()
    },
    **{("rtx_pro_6000_server", backend): version for backend, version in BACKENDS.items()},
    ("a100_sxm", "trtllm"): "1.0.0",
    ("a100_sxm", "vllm"): "0.14.0",
    ("a100_sxm", "sglang"): "0.5.10",
    ("b60", "vllm"): "0.26.0",
}
GUIDE = {"h200_sxm": "1.0.0rc3", "h100_sxm": "1.0.0rc3", "b200_sxm": "1.0.0rc6", "gb200_sxm": "1.0.0rc6"}


@pytest.fixture(autouse=True)
def no_tables_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_TABLES", str(tmp_path))


def test_all_systems_and_backends_are_there_in_the_versions_that_were_recorded() -> None:
    heads = shipped()
    assert {(each.system, each.backend): each.version for each in heads if each.era == "current"} == VERSIONS
    assert {each.system: each.version for each in heads if each.era == "guide"} == GUIDE
    assert all(each.lossless == (each.era == "guide") for each in heads)
    assert all(each.licence == "Apache-2.0" and "AIConfigurator" in each.origin for each in heads)
    assert all(load_system(each.system, era=each.era) for each in heads)


def test_they_stay_within_25_megabytes() -> None:
    heads = shipped()
    assert sum(each.bytes for each in heads) < 25e6
    assert max(each.bytes for each in heads) < 1.2e6
    assert (BUILT_IN / "NOTICE.md").is_file()


def test_every_slice_is_as_its_layout_says() -> None:
    tables = read_tables(Path(next(each.file for each in shipped() if each.system == "gb300")))
    for operation in tables.info.operations:
        layout = LAYOUTS[operation]
        for key in tables.keys(operation):
            found = tables.load(operation, key)
            assert found is not None
            assert (len(key), len(found.axes)) == (len(layout.key), len(layout.axes))
            order = np.lexsort(found.axes[::-1])
            assert np.array_equal(order, np.arange(len(order)))
            assert len(found.latency) == tables.rows(operation, key)
            assert (found.latency >= 0).all()


def latency(
    system: str, backend: str, operation: str, key: tuple[str | int, ...], point: tuple[int, ...], **era: str
) -> float:
    tables = open_tables(system, backend, **era)  # type: ignore[arg-type]
    found = tables.load(operation, key)
    assert found is not None
    mask = np.logical_and.reduce([axis == value for axis, value in zip(found.axes, point, strict=True)])
    assert mask.sum() == 1
    return float(found.latency[mask][0])


@pytest.mark.parametrize(
    ("place", "operation", "key", "point", "expected"),
    [
        (("h200_sxm", "trtllm"), "gemm", ("fp8_block",), (4096, 4096, 128), 0.011790666729211807),
        (("b200_sxm", "vllm"), "gemm", ("fp8_block",), (4096, 4096, 128), 0.18997865915298462),
        *(
            (
                ("h200_sxm", "sglang"),
                "generation_attention",
                (lane, "bfloat16", 8, 128, 0),
                (32, 8, 1024),
                0.0147440001368,
            )
            for lane in ("default", "fa3")
        ),
        (("b60", "vllm"), "nccl", ("all_gather",), (2, 1024), 0.019893),
    ],
)
def test_current_rows_are_within_a_ten_thousandth_of_the_origin(
    place: tuple[str, str],
    operation: str,
    key: tuple[str | int, ...],
    point: tuple[int, ...],
    expected: float,
) -> None:
    assert latency(*place, operation, key, point) == pytest.approx(expected, rel=1.01e-4)


@pytest.mark.parametrize(
    ("operation", "key", "point", "expected"),
    [
        ("gemm", ("fp8_block",), (4096, 4096, 128), 0.0121781329313914),
        ("gemm", ("bfloat16",), (4096, 4096, 128), 0.014334932963053385),
        ("moe", ("default", "bfloat16", "power_law_1.2"), (2, 8, 4096, 14336, 1, 1, 1), 0.19941120147705077),
    ],
)
def test_rows_of_the_guides_time_are_those_of_the_origin(
    operation: str, key: tuple[str | int, ...], point: tuple[int, ...], expected: float
) -> None:
    assert latency("h200_sxm", "trtllm", operation, key, point, era="guide") == expected
