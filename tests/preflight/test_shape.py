"""What a config.json says; whatever else stands there is not known, and never a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.preflight.shape import (
    EXPERTS,
    HEADS,
    KV_HEADS,
    LAYERS,
    LENGTHS,
    PARTS,
    Shape,
    parse_config,
    shape_of,
)

from .conftest import LLAMA_70B

DEEPSEEK = {
    "model_type": "deepseek_v3",
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "n_routed_experts": 256,
    "max_position_embeddings": 163840,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "torch_dtype": "bfloat16",
}


def test_a_usual_model() -> None:
    assert shape_of(LLAMA_70B) == Shape(
        heads=64,
        kv_heads=8,
        layers=80,
        context=131072,
        kv_values=256,
        uniform=True,
        dtype="bfloat16",
    )


def test_latent_attention_has_no_kv_heads_and_one_small_cache() -> None:
    shape = shape_of(DEEPSEEK)
    assert (shape.heads, shape.kv_heads, shape.latent, shape.kv_values) == (128, None, True, 576)
    assert shape.experts == 256
    assert shape.quantized


@pytest.mark.parametrize(
    "config",
    [
        {"text_config": LLAMA_70B, "vision_config": {"num_attention_heads": 16}},
        {"llm_config": LLAMA_70B, "num_attention_heads": 3},
        {"language_config": LLAMA_70B},
        {"thinker_config": {"text_config": LLAMA_70B, "audio_config": {"num_hidden_layers": 2}}},
    ],
)
def test_the_language_part_of_a_model_of_several_parts(config: dict[str, Any]) -> None:
    assert shape_of(config) == shape_of(LLAMA_70B)


def test_what_the_language_part_leaves_to_a_default_is_not_taken_from_elsewhere() -> None:
    assert shape_of({"num_attention_heads": 16, "text_config": {"hidden_size": 4096}}).heads is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"n_head": 12, "n_layer": 6, "n_positions": 1024}, (12, 12, 6, 1024)),  # GPT-2
        ({"num_attention_heads": 71, "num_kv_heads": 1}, (71, 1, None, None)),  # Falcon
        ({"num_attention_heads": 32, "multi_query_group_num": 2, "seq_length": 8192}, (32, 2, None, 8192)),
        ({"num_attention_heads": 32, "num_key_value_heads": None}, (32, 32, None, None)),
        ({"num_attention_heads": 32, "model_max_length": 9, "max_position_embeddings": 4}, (32, 32, None, 9)),
        ({"max_position_embeddings": 9, "max_seq_len": 4}, (None, None, None, 4)),
    ],
)
def test_other_names_of_the_same(config: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    shape = shape_of(config)
    assert (shape.heads, shape.kv_heads, shape.layers, shape.context) == expected


@pytest.mark.parametrize(
    ("more", "scaling"),
    [
        ({}, 1.0),
        ({"rope_scaling": None}, 1.0),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 4.0),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 2.0),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 1.0),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 3}}}, 3.0),
        ({"rope_scaling": {"factor": "8"}}, 1.0),
        ({"rope_scaling": {"factor": -8}}, 1.0),
        ({"rope_scaling": {"factor": 1e300}}, 1.0),
        ({"rope_scaling": {"factor": True}}, 1.0),
    ],
)
def test_the_scaling_of_positions(more: dict[str, Any], scaling: float) -> None:
    assert shape_of({**LLAMA_70B, **more}).scaling == scaling


@pytest.mark.parametrize(
    ("more", "uniform"),
    [
        ({"sliding_window": 4096}, False),
        ({"sliding_window": None}, True),
        ({"sliding_window": 4096, "use_sliding_window": False}, True),
        ({"layer_types": ["full_attention", "full_attention"]}, True),
        ({"layer_types": ["sliding_attention", "full_attention"]}, False),
        ({"layer_types": "full_attention"}, False),
        ({"model_type": "mamba2"}, False),
        ({"model_type": ["llama"]}, False),
        ({"model_type": None}, False),
    ],
)
def test_whether_every_layer_keeps_the_whole_context(more: dict[str, Any], uniform: bool) -> None:
    assert shape_of({**LLAMA_70B, **more}).uniform == uniform


@pytest.mark.parametrize("value", ["64", -64, 0, 64.0, True, [], {}, 5000, 10**12, 10**400, [64, 32], "∞"])
def test_what_is_no_number_of_heads_is_not_known(value: Any) -> None:
    shape = shape_of({"num_attention_heads": value})
    assert shape.heads is None


def test_a_list_with_one_number_for_each_layer() -> None:
    assert shape_of({"num_experts": [64, 64]}).experts == 64


def test_what_a_checkpoint_asks_of_the_kv_cache() -> None:
    assert shape_of({"quantization_config": {"kv_cache_scheme": {"num_bits": 8}}}).small_cache
    assert not shape_of({"quantization_config": {"quant_method": "fp8"}}).small_cache
    assert shape_of({"compression_config": {"quant_method": "x"}}).quantized


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"NaN",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"text_config":' * 900 + b"1" + b"}" * 900,
    ],
)
def test_what_is_no_configuration(content: bytes) -> None:
    assert parse_config(content) in (None, Shape())


NAMES = (
    *(*PARTS, *KV_HEADS, *EXPERTS, *LENGTHS, *HEADS, *LAYERS),
    *("kv_lora_rank", "qk_rope_head_dim", "head_dim", "hidden_size", "rope_scaling", "rope_parameters"),
    *("layer_types", "sliding_window", "use_sliding_window", "model_type", "dtype", "torch_dtype"),
    *("quantization_config", "compression_config", "model_max_length", "factor", "rope_type", "type"),
)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=25,
)


@given(st.dictionaries(st.sampled_from(NAMES), values))
def test_any_configuration_gives_a_shape_of_sane_numbers(config: dict[str, Any]) -> None:
    shape = shape_of(config)
    numbers = (shape.heads, shape.kv_heads, shape.layers, shape.context, shape.kv_values)
    assert all(number is None or number > 0 for number in numbers)
    assert shape.scaling >= 1
    assert parse_config(json.dumps(config).encode()) is not None


@given(st.binary())
def test_any_bytes_are_read(content: bytes) -> None:
    parse_config(content)
