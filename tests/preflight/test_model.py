"""Parallel sizes and context length against the model's own numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.preflight.model import splits
from aegis.preflight.shape import Shape

from .conftest import LLAMA_8B, LLAMA_70B, write_model

if TYPE_CHECKING:
    from .conftest import Desk

MIXTRAL = {**LLAMA_8B, "model_type": "mixtral", "num_local_experts": 8}
QWEN_7B = {**LLAMA_8B, "model_type": "qwen2", "num_attention_heads": 28, "num_key_value_heads": 4}


def told(desk: Desk, config: dict[str, Any], *args: str, engine: str = "vllm", **keys: Any) -> list[str]:
    folder = write_model(desk.folder / "m", config)
    keys = {
        "served_model_name": "M",
        "engine": engine,
        **({f"extra_{engine}_args": args} if args else {}),
        **keys,
    }
    return desk.told(model=str(folder), **keys)


@pytest.mark.parametrize("tensor", [1, 2, 4, 8, 16, 32, 64])
def test_sizes_that_divide_the_heads_pass(desk: Desk, tensor: int) -> None:
    assert told(desk, LLAMA_70B, tensor_parallel_size=tensor) == []


def test_heads_that_cannot_be_split_are_refused_for_sure(desk: Desk) -> None:
    assert told(desk, LLAMA_70B, tensor_parallel_size=6) == [
        (
            "!--tensor-parallel-size: the 64 attention heads of M cannot be split over 6 devices "
            "(use a tensor_parallel_size of 4 or 8)"
        )
    ]


def test_sglang_splits_as_vllm_but_may_be_told_to_split_attention_by_fewer(desk: Desk) -> None:
    said = (
        "--tensor-parallel-size: the 64 attention heads of M cannot be split over 6 devices "
        "(use a tensor_parallel_size of 4 or 8)"
    )
    assert told(desk, LLAMA_70B, engine="sglang", tensor_parallel_size=6) == [said]
    assert told(desk, LLAMA_70B, "--enable-dp-attention", engine="sglang", tensor_parallel_size=6) == []


def test_kv_heads_that_cannot_be_split_nor_copied_are_probably_refused(desk: Desk) -> None:
    assert told(desk, QWEN_7B, tensor_parallel_size=7) == [
        (
            "--tensor-parallel-size: the 4 KV heads of M cannot be split over 7 devices "
            "(use a tensor_parallel_size of 4 or 28)"
        )
    ]
    assert told(desk, QWEN_7B, tensor_parallel_size=28) == []
    assert told(desk, {**QWEN_7B, "num_key_value_heads": 1}, tensor_parallel_size=7) == []


def test_latent_attention_has_no_kv_heads_to_split(desk: Desk) -> None:
    config = {"num_attention_heads": 128, "num_key_value_heads": 3, "kv_lora_rank": 512}
    assert told(desk, config, tensor_parallel_size=16) == []


def test_a_model_of_several_parts_is_judged_by_its_language_part(desk: Desk) -> None:
    config = {"text_config": LLAMA_70B, "vision_config": {"num_attention_heads": 16}}
    (said,) = told(desk, config, tensor_parallel_size=12)
    assert "64 attention heads of M cannot be split over 12 devices" in said


def test_the_line_of_the_size_is_told(desk: Desk) -> None:
    folder = write_model(desk.folder / "m", LLAMA_70B)
    text = f"models:\n  - model: {folder}\n    tensor_parallel_size: 6\n  - model: {folder}\n"
    (said,) = desk.told(text)
    assert said.startswith("!~/d.yaml:3: the 64 attention heads of ~/m cannot be split over 6 devices")


def test_more_stages_than_layers(desk: Desk) -> None:
    assert told(desk, LLAMA_8B, pipeline_parallel_size=32) == []
    assert told(desk, LLAMA_8B, pipeline_parallel_size=33) == [
        (
            "--pipeline-parallel-size: the 32 layers of M cannot be split into 33 pipeline stages "
            "(use a pipeline_parallel_size of at most 32)"
        )
    ]


@pytest.mark.parametrize(
    "args", [("--hf-overrides", '{"num_attention_heads": 6}'), ("--hf-overrides.num_attention_heads=6",)]
)
def test_what_is_overridden_is_not_judged(desk: Desk, args: tuple[str, ...]) -> None:
    assert told(desk, LLAMA_70B, *args, tensor_parallel_size=6) == []


def test_the_simulated_engine_splits_anything(desk: Desk) -> None:
    assert told(desk, LLAMA_70B, engine="sim", tensor_parallel_size=6) == []


@pytest.mark.parametrize("flag", ["--enable-expert-parallel", "--enable_expert_parallel", "-ep"])
def test_a_model_without_experts(desk: Desk, flag: str) -> None:
    assert told(desk, LLAMA_8B, flag) == [
        "--extra-vllm-args: M has no experts for --enable-expert-parallel (leave the flag out)"
    ]
    assert told(desk, MIXTRAL, flag) == []
    assert told(desk, LLAMA_8B, flag, "--no-enable-expert-parallel") == []


def test_vllm_deals_experts_out_evenly_only_where_it_balances_them(desk: Desk) -> None:
    config = {**MIXTRAL, "num_attention_heads": 48, "num_key_value_heads": 48}
    assert told(desk, config, "--enable-expert-parallel", tensor_parallel_size=3) == []
    balanced = ("--enable-expert-parallel", "--enable-eplb")
    assert told(desk, config, *balanced, tensor_parallel_size=3, data_parallel_size=2) == [
        (
            "--extra-vllm-args: --enable-eplb needs the same number of experts on each device, and 8 experts of M are for "
            "6 devices (leave the flag out, or give --eplb-config redundant experts)"
        )
    ]
    assert told(desk, config, *balanced, tensor_parallel_size=4) == []
    more = (*balanced, "--eplb-config", '{"num_redundant_experts": 1}')
    assert told(desk, config, *more, tensor_parallel_size=3) == []


def test_sglang_deals_experts_out_evenly(desk: Desk) -> None:
    assert told(desk, MIXTRAL, "--ep-size", "4", engine="sglang", tensor_parallel_size=4) == []
    assert told(desk, MIXTRAL, "--ep-size", "3", engine="sglang") == [
        (
            "--extra-sglang-args: the 8 experts of M cannot be dealt out evenly to 3 devices "
            "(choose an --ep-size that divides them)"
        )
    ]
    for nonsense in ("three", "-1", "9" * 5000, ""):
        assert told(desk, MIXTRAL, f"--ep-size={nonsense}", engine="sglang") == []


def test_a_context_longer_than_the_model_was_made_for(desk: Desk) -> None:
    said = [
        (
            "--extra-vllm-args: --max-model-len 262144 is more than the 131072 tokens that M was made for "
            "(use at most 131072, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 in `env`)"
        )
    ]
    assert told(desk, LLAMA_8B, "--max-model-len", "262144") == said
    assert told(desk, LLAMA_8B, "--max-model-len=256K") == said
    assert told(desk, LLAMA_8B, "--max-model-len", "131072") == []
    assert told(desk, LLAMA_8B, "--max-model-len", "auto") == []
    assert told(desk, LLAMA_8B, "--max-model-len", "-1") == []
    assert told(desk, LLAMA_8B, "--max-model-len") == []
    yarn = {**LLAMA_8B, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    assert told(desk, yarn, "--max-model-len", "262144") == []


def test_a_longer_context_may_be_allowed(desk: Desk) -> None:
    allowed = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    assert told(desk, LLAMA_8B, "--max-model-len", "262144", env=allowed) == []
    desk.environ |= allowed
    assert told(desk, LLAMA_8B, "--max-model-len", "262144") == []
    assert told(
        desk, LLAMA_8B, "--max-model-len", "262144", env={**allowed, "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "0"}
    )


def test_sglang_has_other_words_for_a_context(desk: Desk) -> None:
    (said,) = told(desk, LLAMA_8B, "--context-length", "262144", engine="sglang")
    assert "--context-length 262144 is more than the 131072 tokens" in said
    assert "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1" in said


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"num_attention_heads": "64"}', '{"num_attention_heads": -3}']
)
def test_a_strange_configuration_is_passed_over(desk: Desk, content: str) -> None:
    folder = write_model(desk.folder / "m", LLAMA_70B)
    (folder / "config.json").write_text(content)
    found = desk.told(model=str(folder), tensor_parallel_size=6)
    assert not [line for line in found if "heads" in line]


counts = st.none() | st.integers(1, 256)


@given(counts, counts, st.integers(1, 64))
def test_a_size_of_one_always_splits_and_a_size_that_splits_divides_the_heads(
    heads: int | None, kv_heads: int | None, tensor: int
) -> None:
    shape = Shape(heads=heads, kv_heads=kv_heads)
    assert splits(shape, 1)
    if splits(shape, tensor) and heads:
        assert heads % tensor == 0
