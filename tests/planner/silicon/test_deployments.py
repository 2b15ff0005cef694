"""Tables of measured deployments: what is read, mended, refused and left out."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import AegisError, ConfigError, DeploymentError
from aegis.planner.problem import Parallel
from aegis.planner.silicon.deployments import copies, flaw, in_fit_half, is_table, read, shipped, throughput

ROW = {
    "id": "one",
    "silicon_data_source": "somewhere; silicon_concurrency=64; measured=today",
    "backend": "vllm",
    "backend_version": "0.19.0",
    "model_path": "MiniMaxAI/MiniMax-M2.5",
    "system": "b300_sxm",
    "precision": "fp8",
    "mode": "agg",
    "isl": "1024",
    "osl": "512",
    "gemm_quant_mode": "fp8",
    "moe_quant_mode": "fp8",
    "batch_size": "64",
    "tp_size": "4",
    "pp_size": "1",
    "attention_dp_size": "1",
    "moe_tp_size": "4",
    "moe_ep_size": "1",
    "silicon_ttft_ms": "100.5",
    "silicon_tpot_ms": "10.25",
}


def table(path: Path, *rows: dict[str, str]) -> Path:
    """Write rows as a table; what they do not say is as in ROW."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROW) + sorted({key for row in rows for key in row} - set(ROW)))
    writer.writeheader()
    writer.writerows([ROW | row for row in rows])
    path.write_text(text.getvalue())
    return path


def test_a_row_is_read(tmp_path: Path) -> None:
    (row,) = read(table(tmp_path / "rows.csv", {}))
    assert (row.backend, row.system, row.mode) == ("vllm", "b300_sxm", "agg")
    assert row.split == Parallel(tp=4, moe_tp=4)
    assert (row.concurrency, row.gpus, row.ttft, row.tpot) == (64, 4, 100.5, 10.25)
    assert throughput(row, 100.5, 10.25) == pytest.approx(1000 * 64 * 512 / (100.5 + 10.25 * 511) / 4)
    assert not flaw(row)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (
            {"tp_size": "4", "attention_dp_size": "4", "moe_tp_size": "1", "moe_ep_size": "16"},
            Parallel(dp=4, moe_ep=4),
        ),
        (
            {"tp_size": "1", "attention_dp_size": "64", "moe_tp_size": "8", "moe_ep_size": "8"},
            Parallel(dp=8, moe_ep=8),
        ),
        (
            {
                "tp_size": "2",
                "attention_dp_size": "2",
                "moe_tp_size": "1",
                "moe_ep_size": "4",
                "system": "gb200",
            },
            Parallel(dp=2, moe_ep=2),
        ),
        (
            {
                "tp_size": "1",
                "attention_dp_size": "16",
                "moe_tp_size": "4",
                "moe_ep_size": "4",
                "system": "gb200",
            },
            Parallel(dp=16, moe_tp=4, moe_ep=4),
        ),
        ({"tp_size": "8", "moe_tp_size": "", "moe_ep_size": "0"}, Parallel(tp=8, moe_ep=8)),
    ],
)
def test_splits_that_were_written_twice_are_mended(
    tmp_path: Path, written: dict[str, str], meant: Parallel
) -> None:
    (row,) = read(table(tmp_path / "rows.csv", written))
    assert row.split == meant


def test_users_of_several_equal_servers_are_those_of_one(tmp_path: Path) -> None:
    (row,) = read(table(tmp_path / "rows.csv", {"batch_size": "16"}))
    assert row.concurrency == 16


def test_disaggregated_rows_have_two_kinds_of_workers(tmp_path: Path) -> None:
    sizes = {"tp_size": "", "moe_tp_size": "", "batch_size": "", "mode": "disagg"}
    prefill = {"prefill_tp_size": "2", "prefill_moe_ep_size": "2", "prefill_num_workers": "3"}
    decode = {"decode_tp_size": "8", "decode_moe_ep_size": "8", "decode_num_workers": "2"}
    told, untold = read(
        table(
            tmp_path / "rows.csv",
            sizes | prefill | decode,
            sizes | prefill | decode | {"prefill_num_workers": "", "decode_num_workers": ""},
        )
    )
    assert told.prefill == Parallel(tp=2, moe_ep=2)
    assert told.gpus == 3 * 2 + 2 * 8
    assert (untold.prefill_workers, untold.decode_workers, untold.gpus) == (0, 0, 2 + 8)


def test_all_problems_are_told_with_their_lines(tmp_path: Path) -> None:
    file = table(
        tmp_path / "a $(b).csv",
        {"isl": "many"},
        {},
        {"silicon_tpot_ms": "soon"},
        {"mode": "both"},
        {"model_path": "no/model"},
        {"batch_size": "", "silicon_data_source": ""},
        {"system": "h200"},
    )
    with pytest.raises(DeploymentError) as caught:
        read(file)
    said = str(caught.value)
    for line, what in (
        (2, "isl"),
        (4, "silicon_tpot_ms"),
        (5, "mode"),
        (6, "no/model"),
        (7, "concurrency"),
        (8, "h200_sxm"),
    ):
        assert any(each.startswith(f"{file}:{line}") and what in each for each in said.splitlines()), said
    assert f"{file}:3" not in said


def test_a_line_tells_all_that_is_wrong_with_it(tmp_path: Path) -> None:
    wrong = {"isl": "many", "osl": "1", "system": "h200", "tp_size": "-2", "silicon_ttft_ms": "soon"}
    file = table(tmp_path / "rows.csv", wrong)
    with pytest.raises(DeploymentError) as caught:
        read(file)
    said = str(caught.value).splitlines()
    for what in ("isl", "osl", "h200_sxm", "tp_size", "silicon_ttft_ms"):
        assert [each for each in said if each.startswith(f"{file}:2") and what in each], said


def test_a_line_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    file = table(tmp_path / "rows.csv", {})
    file.write_text(file.read_text() + "vllm\n,,,,,,,,\n")
    with pytest.raises(DeploymentError) as caught:
        read(file)
    assert {each.partition(": ")[0] for each in str(caught.value).splitlines()} == {f"{file}:3", f"{file}:4"}


def test_what_is_no_table_says_which_columns_it_lacks(tmp_path: Path) -> None:
    (file := tmp_path / "other.csv").write_text("concurrency,ttft,tpot\n1,2,3\n")
    assert not is_table(file.read_text())
    with pytest.raises(ConfigError, match="no column backend"):
        read(file)
    with pytest.raises(ConfigError, match="absent"):
        read(tmp_path / "absent.csv")


@given(st.dictionaries(st.sampled_from(sorted(ROW)), st.text(max_size=12), max_size=6))
def test_whatever_stands_in_a_cell_is_read_or_refused(values: dict[str, str]) -> None:
    import tempfile  # noqa: PLC0415 - hypothesis takes no fixtures of a function

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        try:
            rows = read(table(file, values))
        except AegisError:
            return
    assert all(row.isl > 0 and row.concurrency > 0 for row in rows)


def test_half_of_the_rows_only_test() -> None:
    rows = shipped()
    fit = [row for row in rows if in_fit_half(row.id)]
    assert (len(rows), len(fit)) == (5221, 2611)
    known = {row.measurement for row in fit}
    found = list(copies(rows))
    assert found
    assert all(not in_fit_half(row.id) and row.measurement in known for row in found)


def test_rows_that_cannot_be_right_are_left_out_by_rule() -> None:
    told = [flaw(row) for row in shipped()]
    assert 0 < sum(map(bool, told)) < 0.05 * len(told)
    assert set(told) - {""} == {
        "the attention heads cannot be divided by tp",
        "attention and experts take different numbers of GPUs",
    }
