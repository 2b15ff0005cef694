from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aegis.errors import AegisError, ConfigError
from aegis.planner.models.config import parse_config, read_config
from aegis.planner.models.resolve import find_model, model_names
from aegis.planner.models.shapes import Checkpoint, ModelShape, Window

if TYPE_CHECKING:
    from pathlib import Path

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}
MOE = {**LLAMA, "architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 2}
MLA = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}


def parse(config: object) -> ModelShape:
    return parse_config(config, where="config.json", name="m")


@pytest.mark.parametrize(
    ("name", "family", "sizes"),
    [
        ("QWEN3_32B", "LLAMA", (64, 64, 8, 128, 5120, 25600, 151936)),
        ("QWEN2.5_7B", "LLAMA", (28, 28, 4, 128, 3584, 18944, 152064)),
        ("LLAMA3.1_405B", "LLAMA", (126, 128, 8, 128, 16384, 53248, 128256)),
        ("LLAMA2_70B", "LLAMA", (80, 64, 8, 128, 8192, 28672, 32000)),
        ("DEEPSEEK_V3", "DEEPSEEK", (61, 128, 128, 56, 7168, 18432, 129280)),
        ("MOE_Mixtral8x22B", "MOE", (56, 48, 8, 128, 6144, 16384, 32000)),
        ("QWEN3_480B", "MOE", (62, 96, 8, 128, 6144, 8192, 151936)),
        ("GPT_OSS_120B", "MOE", (36, 64, 8, 64, 2880, 2880, 201088)),
        ("Nemotron_super_v1.1", "NEMOTRONNAS", (80, 64, 0, 128, 8192, 0, 128256)),
    ],
)
def test_the_guides_names_are_known(name: str, family: str, sizes: tuple[int, ...]) -> None:
    model = find_model(name)
    assert (model.name, model.family) == (name, family)
    shape = (
        model.layers,
        model.heads,
        model.kv_heads,
        model.head_size,
        model.hidden,
        model.inter,
        model.vocab,
    )
    assert shape == sizes


@pytest.mark.parametrize("name", ["Qwen/Qwen3-32B", "Qwen3-32B", "qwen3-32b", "qwen/QWEN3-32b"])
def test_a_hugging_face_id_needs_no_organisation_and_no_case(name: str) -> None:
    assert find_model(name).hidden == 5120


def test_every_shipped_model_has_a_shape_or_says_why_not() -> None:
    unknown = set()
    for name in model_names():
        try:
            assert find_model(name).vocab > 0
        except ConfigError as error:
            assert "cannot be planned yet" in error.message  # noqa: PT017 - which ones is asserted below
            unknown.add(name.partition("/")[2].partition("-NVFP4")[0])
    assert {"MiniMax-M3", "Kimi-K3", "DeepSeek-V4-Pro"} <= unknown


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("zhipuai/GLM-5", "zai-org/GLM-5"),
        ("nvidia/Qwen3-32B-NVFP4", "Qwen/Qwen3-32B"),
        ("nvidia/Qwen3-32B-FP4", "Qwen/Qwen3-32B"),
        ("nvidia/DeepSeek-R1-NVFP4", "deepseek-ai/DeepSeek-R1"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "meta-llama/Llama-3.1-8B-Instruct"),
    ],
)
def test_a_requantized_model_has_the_shape_of_its_original(name: str, of: str) -> None:
    one, other = (replace(find_model(each), name="", checkpoint=Checkpoint()) for each in (name, of))
    assert one == other


def test_deepseek_r1_in_nvfp4_keeps_attention_in_bfloat16() -> None:
    parts = dict(find_model("nvidia/DeepSeek-R1-NVFP4").checkpoint.parts)
    assert {parts[part] for part in ("q", "kv", "o")} == {"bfloat16"}
    assert "shared" not in parts


def test_an_unknown_name_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="QWEN3_33B") as caught:
        find_model("QWEN3_33B")
    assert "did you mean `QWEN3_32B`?" in str(caught.value.hint)
    assert "config.json" in str(caught.value.hint)
    with pytest.raises(ConfigError):
        find_model("x" * 5000)


def test_a_path_may_be_a_file_or_its_directory(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA))
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    for path in (tmp_path, file):
        model = find_model(str(path))
        assert (model.layers, model.checkpoint.gemm) == (2, "nvfp4")


@pytest.mark.parametrize("content", ["", "[", "[1]", "3", '{"a": 1', "\x00"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"this folder has no config\.json"):
        find_model(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no such file"):
        find_model(str(tmp_path / "config.json"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "no.json")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hidden_size", None, "`hidden_size` is missing"),
        ("hidden_size", "64", "'64', not a whole number"),
        ("hidden_size", -1, "not between 0"),
        ("hidden_size", 1e300, "not between 0"),
        ("hidden_size", float("inf"), "not a whole number"),
        ("hidden_size", 4, "less than 8 heads"),
        ("vocab_size", 0, "`vocab_size` is missing"),
        ("num_hidden_layers", 10**6, "not between 0 and 4096"),
        ("num_attention_heads", True, "not a whole number"),
        ("layer_types", ["full_attention"], "1 entries for 2 layers"),
        ("layer_types", ["odd", "full_attention"], "'odd'"),
        ("hybrid_override_pattern", "M?", r"'\?'"),
    ],
)
def test_a_strange_size_is_an_error_that_names_its_key(key: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse({**LLAMA, key: value})


def test_experts_without_a_width_of_routing_are_an_error() -> None:
    with pytest.raises(ConfigError, match="num_experts_per_tok"):
        parse({**MOE, "num_experts_per_tok": None})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_key_value_heads": 16}, "`num_key_value_heads` is 16, more than the 8 heads"),
        ({"architectures": ["BertModel"]}, "generate no text"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "generate no text"),
        ({"architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True}, "an encoder"),
    ],
)
def test_what_is_no_decoder_is_an_error(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(LLAMA | changed)


def test_the_language_part_of_a_model_of_several_parts_is_read() -> None:
    model = parse({"architectures": ["Whatever"], "vision_config": {}, "text_config": LLAMA})
    assert (model.architecture, model.hidden, model.family) == ("Whatever", 64, "LLAMA")


@pytest.mark.parametrize(
    ("more", "family"),
    [
        ({}, "LLAMA"),
        ({"n_routed_experts": 8, "num_experts_per_tok": 2}, "MOE"),
        ({"n_routed_experts": 8, "num_experts_per_tok": 2, **MLA}, "DEEPSEEK"),
    ],
)
def test_an_unknown_architecture_is_judged_by_its_shape(more: dict[str, Any], family: str) -> None:
    assert parse({**LLAMA, "architectures": ["NewForCausalLM"], **more}).family == family


def test_windows_shared_experts_and_drafted_layers_are_read() -> None:
    model = parse(
        {
            **MOE,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "n_shared_experts": 2,
            "moe_intermediate_size": 32,
            "num_nextn_predict_layers": 1,
            "tie_word_embeddings": True,
        }
    )
    assert model.window == Window(size=16)
    assert [each.mixer for each in model.kinds] == ["window", "full"]
    assert (model.shared_inter, model.mtp_layers, model.tied_embeddings) == (64, 1, True)
    assert parse({**LLAMA, "sliding_window": 16, "use_sliding_window": False}).window is None


@pytest.mark.parametrize(
    ("stored", "gemm", "moe"),
    [
        (
            {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
            *["fp8_block"] * 2,
        ),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8", "fp8"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8_static", "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8_static", "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", "nvfp4"),
        ({"quant_method": "mxfp4"}, "bfloat16", "w4a16_mxfp4"),
        ({"quant_method": "awq", "bits": 4}, "int4_wo", "int4_wo"),
        ({"quant_method": "gptq", "bits": 8}, "int8_wo", "int8_wo"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8_wo", "int8_wo"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}},
                "ignore": ["re:.*self_attn.*"],
            },
            "bfloat16",
            "int4_wo",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", "strategy": "block"}}},
            },
            "fp8_block",
            "fp8_block",
        ),
    ],
)
def test_the_formats_of_a_checkpoint_are_read(stored: dict[str, Any], gemm: str, moe: str) -> None:
    for config in (
        {**LLAMA, "quantization_config": stored},
        {"text_config": {**LLAMA, "quantization_config": stored}},
    ):
        checkpoint = parse(config).checkpoint
        assert (checkpoint.gemm, checkpoint.moe) == (gemm, moe)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"quant_method": "magic"}, "'magic', a way to quantize that is not known"),
        ({"quant_method": "gptq", "bits": 3}, "`quantization_config.bits` is 3"),
    ],
)
def test_a_way_to_quantize_that_is_not_known_is_an_error(stored: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse({**LLAMA, "quantization_config": stored})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = (
    *LLAMA,
    *MLA,
    *("num_experts", "num_experts_per_tok", "layer_types", "moe_layer_freq", "sliding_window", "text_config"),
    *("quantization_config", "hf_quant_config", "hybrid_override_pattern", "block_configs", "index_topk"),
    *("index_topk_pattern", "hybrid_layer_pattern", "interleave_moe_layer_step", "mamba_ssm_dtype"),
)
ARCHITECTURES = (
    *(
        "DeciLMForCausalLM",
        "NemotronHForCausalLM",
        "Llama4ForConditionalGeneration",
        "DeepseekV32ForCausalLM",
    ),
    *("Qwen3_5ForConditionalGeneration", "Gemma4ForConditionalGeneration", "GptOssForCausalLM"),
)


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6), st.sampled_from(ARCHITECTURES))
def test_any_json_is_a_shape_or_an_error(strange: dict[str, Any], architecture: str) -> None:
    for config in (strange, {**LLAMA, "architectures": [architecture], **strange}):
        with contextlib.suppress(AegisError):
            assert isinstance(parse(config), ModelShape)


@settings(max_examples=400)
@given(json_values)
def test_any_quantization_is_a_shape_or_an_error(strange: object) -> None:
    for key in ("quantization_config", "hf_quant_config"):
        wrapped = {"quantization": strange, "quant_method": "mixed_precision", "config_groups": strange}
        for value in (strange, wrapped):
            with contextlib.suppress(AegisError):
                assert isinstance(parse({**LLAMA, key: value}), ModelShape)


@settings(max_examples=400)
@given(json_values)
def test_anything_but_an_object_is_an_error(strange: object) -> None:
    with contextlib.suppress(AegisError):
        parse(strange)
