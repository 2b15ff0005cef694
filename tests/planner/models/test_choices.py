"""What is chosen unless said: number formats, splits, drafted tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import ConfigError
from aegis.planner.models.formats import bytes_of, flops_of, format_name
from aegis.planner.models.limits import SplitError, check_split
from aegis.planner.models.mtp import default_mtp, generation_factor
from aegis.planner.models.quantize import explain_quantization, has_in
from aegis.planner.models.resolve import find_model
from aegis.planner.models.splits import Lists, default_lists, splits_of
from aegis.planner.operations import NoData
from aegis.planner.problem import BACKENDS, Mtp, Parallel, Quantization
from tests.planner.models.chosen import default_quantization, default_splits

from .recorded import BLACKWELL, HOPPER, recordings, system

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.answer import Role
    from aegis.planner.problem import Backend
    from aegis.planner.tables.slices import Key, Slice

AMPERE = 80


class Tables:
    """Tables of which only the index is there."""

    system = backend = version = "test"
    lossless = True

    def __init__(self, **keys: list[Key]) -> None:
        self._keys = keys

    def keys(self, operation: str) -> Sequence[Key]:
        return self._keys.get(operation, [])

    def load(self, operation: str, key: Key) -> Slice | None:
        raise AssertionError((operation, key))


def formats(chosen: Quantization) -> tuple[str, ...]:
    return chosen.gemm, chosen.moe, chosen.kv_cache, chosen.fmha


@pytest.mark.parametrize(
    ("name", "sm_version", "expected"),
    [
        ("QWEN3_32B", HOPPER, ("fp8_block", "fp8_block", "fp8", "fp8")),
        ("QWEN2.5_32B", HOPPER, ("fp8", "fp8", "fp8", "fp8")),
        ("LLAMA3.1_8B", HOPPER, ("fp8", "fp8", "fp8", "fp8")),
        ("MOE_Mixtral8x7B", 89, ("fp8", "fp8", "fp8", "fp8")),
        ("DEEPSEEK_V3", HOPPER, ("fp8_block", "fp8_block", "fp8", "bfloat16")),
        ("LLAMA3.1_8B", BLACKWELL, ("nvfp4", "nvfp4", "fp8", "fp8")),
        ("DEEPSEEK_V3", BLACKWELL, ("nvfp4", "nvfp4", "fp8", "bfloat16")),
        ("QWEN3_32B", AMPERE, ("bfloat16", "bfloat16", "bfloat16", "bfloat16")),
    ],
)
def test_the_guide_chooses_formats_by_the_gpu(name: str, sm_version: int, expected: tuple[str, ...]) -> None:
    chosen = default_quantization(
        find_model(name), system=system(sm_version), backend="trtllm", rules="guide"
    )
    assert formats(chosen) == expected


def test_a_preferred_format_is_for_all_weights_but_w4afp8() -> None:
    model = find_model("DEEPSEEK_V3")
    for prefer, expected in (("fp8", ("fp8", "fp8")), ("w4afp8", ("fp8_block", "w4afp8"))):
        chosen = default_quantization(
            model, system=system(HOPPER), backend="trtllm", rules="guide", prefer=prefer
        )
        assert formats(chosen)[:2] == expected


@pytest.mark.parametrize(
    ("name", "sm_version", "backend", "expected"),
    [
        ("Qwen/Qwen3-32B", HOPPER, "trtllm", ("bfloat16", "bfloat16", "bfloat16", "bfloat16")),
        ("Qwen/Qwen3-32B-FP8", HOPPER, "sglang", ("fp8_block", "fp8_block", "fp8", "fp8")),
        ("Qwen/Qwen3-32B-FP8", HOPPER, "vllm", ("fp8_block", "fp8_block", "fp8", "bfloat16")),
        ("Qwen/Qwen3-32B-FP8-Static-PerTensor", HOPPER, "trtllm", ("fp8_static", "fp8", "fp8", "fp8")),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", HOPPER, "trtllm", ("fp8_static", "fp8", "fp8", "fp8")),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", HOPPER, "vllm", ("fp8_static", "fp8", "fp8", "bfloat16")),
        ("nvidia/DeepSeek-R1-NVFP4", BLACKWELL, "trtllm", ("nvfp4", "nvfp4", "fp8", "fp8")),
        ("nvidia/Qwen3-32B-NVFP4", BLACKWELL, "trtllm", ("nvfp4", "nvfp4", "fp8", "fp8")),
        ("zhipuai/GLM-5", BLACKWELL, "sglang", ("bfloat16", "bfloat16", "bfloat16", "bfloat16")),
        ("nvidia/Qwen3-235B-A22B-NVFP4", BLACKWELL, "trtllm", ("nvfp4", "nvfp4", "fp8", "fp8")),
        ("nvidia/Qwen3-235B-A22B-NVFP4", HOPPER, "trtllm", ("nvfp4_wo", "nvfp4_wo", "fp8", "fp8")),
        ("openai/gpt-oss-120b", HOPPER, "trtllm", ("bfloat16", "w4a16_mxfp4", "bfloat16", "bfloat16")),
        (
            "openai/gpt-oss-120b",
            BLACKWELL,
            "trtllm",
            ("bfloat16", "w4a8_mxfp4_mxfp8", "bfloat16", "bfloat16"),
        ),
        ("moonshotai/Kimi-K2.5", BLACKWELL, "sglang", ("bfloat16", "int4_wo", "bfloat16", "bfloat16")),
    ],
)
def test_the_checkpoint_chooses_formats_now(
    name: str, sm_version: int, backend: Backend, expected: tuple[str, ...]
) -> None:
    assert (
        formats(default_quantization(find_model(name), system=system(sm_version), backend=backend))
        == expected
    )


@pytest.mark.parametrize("recording", ["oplists", "oplists_steps", "oplists_more"])
def test_formats_of_recorded_lists_are_those_of_their_checkpoints(recording: str) -> None:
    for key, record in recordings(recording).items():
        if key.startswith(("h200_sxm|sglang|Qwen/Qwen3-32B-FP8|cp",)) or "gpt-oss" in record["model"]:
            continue
        blackwell = record.get("system") is None if recording == "oplists_more" else "b200" in key
        chosen = default_quantization(
            find_model(record["model"]),
            system=system(BLACKWELL if blackwell else HOPPER),
            backend=record["backend"],
        )
        assert formats(chosen)[:3] == (record["gemm"], record["moe"], record["kv"]), key


def test_attention_falls_back_to_bfloat16_where_no_table_is_in_fp8() -> None:
    model = find_model("Qwen/Qwen3-32B-FP8")
    wide: Key = ("default", "bfloat16", "fp8", 8, 128, 0)
    narrow: Key = ("default", "fp8", "fp8", 8, 128, 0)
    for keys, role, expected in (
        ([wide], "agg", "bfloat16"),
        ([wide, narrow], "agg", "fp8"),
        ([], "agg", "fp8"),
        ([wide], "decode", "fp8"),
    ):
        chosen, notes = explain_quantization(
            model,
            system=system(HOPPER),
            backend="trtllm",
            has=has_in(Tables(context_attention=keys)),
            role=role,  # type: ignore[arg-type]
        )
        assert chosen.fmha == expected
        assert bool(notes) == (expected == "bfloat16")


def test_latent_attention_asks_both_of_its_tables() -> None:
    tables = Tables(context_mla=[("bfloat16", "fp8")], mla_context_module=[("fp8", "fp8", "fp8_block", 128)])
    chosen = default_quantization(
        find_model("deepseek-ai/DeepSeek-V3"), system=system(HOPPER), backend="trtllm", has=has_in(tables)
    )
    assert chosen.fmha == "fp8"


def test_an_index_is_asked_by_column() -> None:
    has = has_in(Tables(gemm=[("fp8",)]))
    assert has("gemm")
    assert has("gemm", quant="fp8")
    assert not has("gemm", quant="nvfp4")
    assert not has("gemm", colour="red")
    assert not has("no_such_table")


def test_bytes_and_rates_of_formats() -> None:
    assert (bytes_of("nvfp4"), bytes_of("nvfp4", "guide"), bytes_of("float16")) == (9 / 16, 0.5, 2)
    hopper = system(HOPPER)
    assert flops_of("fp8_block", hopper) == 1978e12
    assert flops_of("nvfp4", hopper, "guide") == 4 * 989e12
    with pytest.raises(NoData, match="does not compute in fp4"):
        flops_of("nvfp4", hopper)
    with pytest.raises(ConfigError, match="fp8_blok") as caught:
        format_name("fp8_blok")
    assert caught.value.hint == "did you mean `fp8_block`?"


def sizes(found: tuple[Parallel, ...]) -> set[tuple[int, ...]]:
    return {(each.tp, each.pp, each.dp, each.moe_tp, each.moe_ep, each.cp) for each in found}


def test_dense_models_are_split_by_powers_of_two() -> None:
    found = default_splits(find_model("QWEN3_32B"), system=system(HOPPER), backend="trtllm", total_gpus=4)
    assert [each.tp for each in found] == [1, 2, 4]
    linked = default_splits(
        find_model("QWEN3_32B"), system=system(BLACKWELL, name="gb200"), backend="trtllm", total_gpus=64
    )
    assert linked[-1].tp == 16


@pytest.mark.parametrize(("role", "widest"), [("agg", 8), ("prefill", 8), ("decode", 1)])
def test_sglang_prefills_in_context_parallel(role: Role, widest: int) -> None:
    found = default_splits(
        find_model("QWEN3_32B"), system=system(HOPPER), backend="sglang", role=role, total_gpus=8
    )
    assert max(each.cp for each in found) == widest
    assert all(each.cp == 1 or each.tp == 1 for each in found)


def test_the_guide_splits_experts_whole() -> None:
    model = find_model("DEEPSEEK_V3")
    found = default_splits(model, system=system(HOPPER), backend="trtllm", rules="guide", total_gpus=8)
    assert sizes(found) == {
        *((tp, 1, 1, 1, tp, 1) for tp in (1, 2, 4, 8)),
        *((1, 1, dp, 1, dp, 1) for dp in (2, 4, 8)),
    }
    prefill = default_splits(
        model, system=system(HOPPER), backend="trtllm", rules="guide", role="prefill", total_gpus=8
    )
    assert {each.dp for each in prefill} == {1}
    wide = default_splits(
        model,
        system=system(HOPPER),
        backend="trtllm",
        rules="guide",
        role="decode",
        total_gpus=64,
        wide_ep=True,
    )
    assert max(each.moe_ep for each in wide) == 64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wide_ep", [False, True])
def test_splits_of_experts_use_all_gpus_of_a_worker(backend: Backend, *, wide_ep: bool) -> None:
    found = default_splits(
        find_model("QWEN3_235B"), system=system(HOPPER), backend=backend, total_gpus=32, wide_ep=wide_ep
    )
    assert found
    assert len(set(map(repr, found))) == len(found)
    for each in found:
        assert each.tp * each.dp * each.cp == each.moe_tp * each.moe_ep
        assert each.gpus <= 32
        if backend == "trtllm":
            assert 1 in (each.tp, each.dp)
        if backend == "vllm":
            assert 1 in (each.moe_tp, each.moe_ep)
    assert max(each.gpus for each in found) == (32 if wide_ep else 16)


def test_sparse_attention_on_blackwell_is_tried_with_two_stages() -> None:
    model = find_model("deepseek-ai/DeepSeek-V3.2")
    for sm_version, gpus, stages in ((BLACKWELL, 16, {1, 2}), (BLACKWELL, 8, {1}), (HOPPER, 16, {1})):
        lists = default_lists(model, system=system(sm_version), backend="trtllm", total_gpus=gpus)
        assert set(lists.pp) == stages


@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=4),
    st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=4),
    st.sampled_from(BACKENDS),
)
def test_splits_of_any_lists_are_among_their_sizes(
    gpus: list[int], ways: list[int], backend: Backend
) -> None:
    lists = Lists(tuple(gpus), *[tuple(ways)] * 6)
    for has_experts in (False, True):
        for each in splits_of(lists, has_experts=has_experts, backend=backend):
            assert each.gpus in gpus
            assert {each.tp, each.pp, each.cp} <= set(ways)


def test_drafted_tokens_run_through_more_layers() -> None:
    model = find_model("DEEPSEEK_V3")
    mtp = default_mtp(model, "guide")
    assert (mtp.drafted, default_mtp(model, "current").drafted) == (1, 0)
    assert default_mtp(find_model("QWEN3_32B"), "guide").drafted == 0
    assert generation_factor(model, mtp, "current") == 62 / 61
    assert generation_factor(model, mtp, "guide") == pytest.approx(62 / 61 / 1.85)
    assert generation_factor(model, Mtp(), "guide") == 1.0


def test_blocks_of_a_searched_architecture_draft_no_tokens() -> None:
    with pytest.raises(SplitError, match="does not draft"):
        check_split(
            find_model("Nemotron_super_v1.1"),
            Parallel(),
            Quantization(gemm="fp8", moe="fp8", kv_cache="fp8", fmha="fp8"),
            backend="trtllm",
            rules="current",
            mtp=Mtp(drafted=1),
        )
