from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from aegis.errors import ConfigError
from aegis.planner.tables.importing import import_package
from aegis.planner.tables.store import read_tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aegis.planner.tables.slices import Key
    from aegis.planner.tables.store import StoredTables

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Row = dict[str, Any]


def put(systems: Path, place: str, rows: Sequence[Row]) -> None:
    file = systems / "data" / place
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), file)


def gemm(m: int, latency: float, **more: Any) -> Row:
    return {"gemm_dtype": "fp8", "m": m, "n": 64, "k": 32, "latency": latency, "kernel_source": "a", **more}


def bmm(tokens: int, latency: float, kernel: str = "own") -> Row:
    base = {"op_name": "mla_gen_pre", "bmm_dtype": "bfloat16", "num_heads": 16, "kernel_source": kernel}
    return {**base, "num_tokens": tokens, "latency": latency}


def attention(heads: int, kv_heads: int, kernel: str, latency: float) -> Row:
    base = {"attn_dtype": "bfloat16", "kv_cache_dtype": "fp8", "head_dim": 128, "batch_size": 2, "isl": 16}
    more = {"num_heads": heads, "num_key_value_heads": kv_heads, "kernel_source": kernel, "step": 0}
    return {**base, **more, "latency": latency}


@pytest.fixture
def systems(tmp_path: Path) -> Path:
    folder = tmp_path / "aiconfigurator_core" / "systems"
    (folder / "data").mkdir(parents=True)
    (tmp_path / "aiconfigurator_core-9.8.7.dist-info").mkdir()
    slots = "defaults: {vllm: {current: 0.24.0}, sglang: {current: 0.5.14}}\n"
    (folder / "query_versions.yaml").write_text(slots)
    return folder


def convert(systems: Path, backend: str = "vllm", **more: Any) -> StoredTables:
    out = systems.parent.parent / "out"
    heads = list(import_package(systems.parent, out, lossless=True, backends=[backend], **more))
    assert [head.backend for head in heads] == [backend]
    return read_tables(next(out.glob(f"*/*-{backend}-*.table")))


def rows(tables: StoredTables, operation: str, *key: str | int) -> dict[tuple[int, ...], float]:
    found = tables.load(operation, key)
    assert found is not None
    return dict(
        zip(zip(*(axis.tolist() for axis in found.axes), strict=True), found.latency.tolist(), strict=True)
    )


def test_the_first_row_of_a_point_counts_and_rows_are_sorted(systems: Path) -> None:
    put(systems, "x/gemm/vllm/0.24.0/gemm_perf.parquet", [gemm(8, 0.3), gemm(1, 0.1), gemm(8, 0.9)])
    tables = convert(systems)
    assert rows(tables, "gemm", "fp8") == {(64, 32, 1): 0.1, (64, 32, 8): 0.3}
    assert tables.info.origin == "NVIDIA AIConfigurator 9.8.7"
    assert tables.info.licence == "Apache-2.0"


def test_sources_follow_version_donors_and_earlier_versions_nearest_first(systems: Path) -> None:
    for version, latency in (
        ("0.24.0", 0.1),
        ("0.30.0", 0.2),
        ("0.9.0", 0.4),
        ("0.19.0", 0.3),
        ("0.25.0", 0.5),
    ):
        points = {"0.24.0": [1], "0.30.0": [1, 2], "0.19.0": [1, 2, 3], "0.9.0": [1, 2, 3, 4], "0.25.0": [5]}
        put(
            systems,
            f"x/gemm/vllm/{version}/gemm_perf.parquet",
            [gemm(m, latency) for m in points[version]],
        )
    reuse = "reuse: [{table: gemm_perf, from_version: 0.30.0, reason: r}, {table: moe_perf, from_version: 0.25.0}]"
    (systems / "data/x/gemm/vllm/0.24.0/reuse.yaml").write_text(reuse)
    found = rows(convert(systems), "gemm", "fp8")
    assert {m: latency for (_, _, m), latency in found.items()} == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}


def test_other_backends_fill_in_only_kernels_that_both_may_use(systems: Path) -> None:
    put(systems, "x/mla_bmm/sglang/0.5.14/mla_bmm_perf.parquet", [bmm(1, 0.1)])
    shared = [bmm(1, 0.9, "default"), bmm(2, 0.2, "default"), bmm(3, 0.3, "special"), bmm(4, 0.4, "absent")]
    put(systems, "x/mla_bmm/trtllm/1.0/mla_bmm_perf.parquet", shared)
    put(systems, "x/mla_bmm/trtllm/2.0/mla_bmm_perf.parquet", [bmm(2, 0.7, "default")])
    group = "op_file: mla_bmm_perf.parquet, frameworks: [sglang, trtllm]"
    (systems / "perf_data_reuse_manifest.yaml").write_text(
        f"groups:\n- {{{group}, kernel_source: default, tier: shared_fallback}}\n"
        f"- {{{group}, kernel_source: absent, tier: absence_load_bearing}}\n"
        "- {op_file: mla_bmm_perf.parquet, frameworks: [trtllm], kernel_source: special, tier: shared}\n"
    )
    assert rows(convert(systems, "sglang"), "mla_bmm", "bfloat16", "pre") == {
        (16, 1): 0.1,
        (16, 2): 0.7,
    }


def test_attention_is_kept_by_kernel_beside_the_union(systems: Path) -> None:
    table = [attention(8, 2, "triton", 0.4), attention(8, 2, "fa3", 0.2), attention(8, 8, "fa3", 0.3)]
    for backend, version in (("sglang", "0.5.14"), ("vllm", "0.24.0")):
        put(systems, f"x/attention/{backend}/{version}/context_attention_perf.parquet", table)
    keys: list[Key] = [("default", 0), ("default", 2), ("fa3", 0), ("fa3", 2), ("triton", 2)]
    sglang = convert(systems, "sglang")
    assert [(key[0], key[3]) for key in sglang.keys("context_attention")] == keys
    fixed = ("bfloat16", "fp8", 2, 128, 0)
    assert rows(sglang, "context_attention", "default", *fixed) == {(8, 16, 2): 0.4}
    assert rows(sglang, "context_attention", "fa3", *fixed) == {(8, 16, 2): 0.2}
    assert {key[0] for key in convert(systems, "vllm").keys("context_attention")} == {"default"}


def test_eager_all_reduces_do_not_count_but_on_intel(systems: Path) -> None:
    for system, device in (("x", "NVIDIA X"), ("y", "Intel(R) Y")):
        table = [
            {
                "num_gpus": 2,
                "message_size": 128,
                "latency": 0.9,
                "kernel_source": "v_eager",
                "device": device,
            },
            {
                "num_gpus": 2,
                "message_size": 128,
                "latency": 0.1,
                "kernel_source": "v_graph",
                "device": device,
            },
        ]
        put(systems, f"{system}/comm/vllm/0.24.0/custom_allreduce_perf.parquet", table)
    out = systems.parent / "out"
    heads = import_package(systems, out, lossless=True)
    found = {each.system: read_tables(out / "current" / f"{each.system}-vllm-0.24.0.table") for each in heads}
    assert rows(found["x"], "custom_allreduce") == {(2, 128): 0.1}
    assert rows(found["y"], "custom_allreduce") == {(2, 128): 0.9}


def test_collectives_are_of_the_library_version_that_the_system_names(systems: Path) -> None:
    put(systems, "x/gemm/vllm/0.24.0/gemm_perf.parquet", [gemm(1, 0.1)])
    (systems / "x.yaml").write_text('misc: {nccl_version: "2.27"}\n')
    for version, latency in (("2.27", 0.1), ("2.29", 0.2)):
        table = [
            {
                "op_name": "all_gather",
                "nccl_dtype": kind,
                "num_gpus": 2,
                "message_size": 8,
                "latency": latency,
            }
            for kind in ("int8", "half")
        ]
        put(systems, f"x/comm/nccl/{version}/nccl_perf.parquet", table)
    assert rows(convert(systems), "nccl", "all_gather") == {(2, 8): 0.1}


def test_kernels_for_few_tokens_are_a_lane_of_their_own(systems: Path) -> None:
    base = {"moe_dtype": "nvfp4", "distribution": "balanced", "topk": 2, "num_experts": 8, "hidden_size": 64}
    base |= {"inter_size": 32, "moe_tp_size": 1, "moe_ep_size": 1, "num_tokens": 1}
    table = [
        {**base, "kernel_source": kernel, "latency": latency}
        for kernel, latency in (("moe_torch_flow_min_latency", 0.1), ("moe_torch_flow", 0.2))
    ]
    put(systems, "x/moe/vllm/0.24.0/moe_perf.parquet", table)
    tables = convert(systems)
    point = (2, 8, 64, 32, 1, 1, 1)
    assert rows(tables, "moe", "min_latency", "nvfp4", "balanced") == {point: 0.1}
    assert rows(tables, "moe", "default", "nvfp4", "balanced") == {point: 0.2}


def test_files_of_the_guides_time_are_read_from_text(tmp_path: Path) -> None:
    folder = tmp_path / "systems" / "data" / "x" / "trtllm"
    for version in ("0.20.0", "1.0.0rc3"):
        (folder / version).mkdir(parents=True)
    (folder / "1.0.0rc3" / "gemm_perf.txt").write_text(
        "framework,gemm_dtype,m,n,k,latency\nT,float16,1,64,32,0.0123456789012345\nT,float16,1,64,32,9\n"
    )
    (folder / "1.0.0rc3" / "context_mla_perf.txt").write_text(
        "mla_dtype,kv_cache_dtype,batch_size,isl,tp_size,step,latency\nfloat16,fp8,1,16,4,0,0.5\n"
    )
    (folder / "0.20.0" / "gemm_perf.txt").write_text("gemm_dtype,m,n,k,latency\nfp8,1,64,32,1\n")
    [head] = import_package(tmp_path, tmp_path / "out", lossless=True)
    assert (head.era, head.version, head.operations) == ("guide", "1.0.0rc3", {"context_mla": 1, "gemm": 1})
    tables = read_tables(tmp_path / "out" / "guide" / "x-trtllm-1.0.0rc3.table")
    assert rows(tables, "gemm", "bfloat16") == {(64, 32, 1): 0.0123456789012345}
    assert rows(tables, "context_mla", "bfloat16", "fp8") == {(32, 16, 1): 0.5}


def test_a_folder_without_tables_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no measured tables there"):
        list(import_package(tmp_path, tmp_path / "out"))


def test_a_system_that_the_package_lacks_names_the_nearest(systems: Path) -> None:
    put(systems, "h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet", [gemm(1, 0.1)])
    with pytest.raises(ConfigError) as raised:
        list(import_package(systems, systems / "out", systems=["h200_sx"]))
    assert raised.value.hint == "did you mean `h200_sxm`?"


@pytest.mark.parametrize("wrong", [{"n": "wide"}, {"latency": "slow"}])
def test_a_value_that_is_no_number_names_file_and_column(wrong: Row, systems: Path) -> None:
    put(systems, "x/gemm/vllm/0.24.0/gemm_perf.parquet", [{**gemm(1, 0.1), **wrong}])
    with pytest.raises(ConfigError, match=rf"gemm_perf\.parquet: column `{next(iter(wrong))}`"):
        convert(systems)


def test_a_file_that_is_no_parquet_or_lacks_a_column_is_an_error(systems: Path) -> None:
    put(systems, "x/gemm/vllm/0.24.0/gemm_perf.parquet", [{"m": 1}])
    with pytest.raises(ConfigError, match="there is no column `gemm_dtype`"):
        convert(systems)
    (systems / "data/x/gemm/vllm/0.24.0/gemm_perf.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        convert(systems)


def test_without_pyarrow_the_hint_says_how_to_get_it(systems: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(systems, "x/gemm/vllm/0.24.0/gemm_perf.parquet", [gemm(1, 0.1)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="needs pyarrow") as raised:
        convert(systems)
    assert raised.value.hint == "pip install 'aegis-serve[tables]'"
