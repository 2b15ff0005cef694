"""Which family an architecture belongs to. An unknown one is judged by its shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.planner.models.shapes import Family

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": "LLAMA",
    "Qwen2ForCausalLM": "LLAMA",
    "Qwen3ForCausalLM": "LLAMA",
    "Qwen3VLForConditionalGeneration": "LLAMA",
    "MiMoForCausalLM": "LLAMA",
    "MistralForCausalLM": "LLAMA",
    "GPT2LMHeadModel": "GPT",
    "GPTBigCodeForCausalLM": "GPT",
    "GPTNeoXForCausalLM": "GPT",
    "OPTForCausalLM": "GPT",
    "Starcoder2ForCausalLM": "GPT",
    "NemotronForCausalLM": "GPT",
    "MixtralForCausalLM": "MOE",
    "GptOssForCausalLM": "MOE",
    "Qwen2MoeForCausalLM": "MOE",
    "Qwen3MoeForCausalLM": "MOE",
    "Qwen3VLMoeForConditionalGeneration": "MOE",
    "MiniMaxM2ForCausalLM": "MOE",
    "DeepSeekForCausalLM": "DEEPSEEK",
    "DeepseekV3ForCausalLM": "DEEPSEEK",
    "KimiK25ForConditionalGeneration": "KIMIK25",
    "DeepseekV32ForCausalLM": "DEEPSEEKV32",
    "GlmMoeDsaForCausalLM": "DEEPSEEKV32",
    "DeciLMForCausalLM": "NEMOTRONNAS",
    "NemotronHForCausalLM": "NEMOTRONH",
    "MiMoV2FlashForCausalLM": "HYBRIDMOE",
    "Llama4ForConditionalGeneration": "HYBRIDMOE",
    "Qwen3_5ForConditionalGeneration": "QWEN35",
    "Qwen3_5MoeForConditionalGeneration": "QWEN35",
    "Gemma4ForConditionalGeneration": "GEMMA4MIX",
}

# They compute in ways that no family here has: an answer would be wrong without anybody seeing it.
UNKNOWN_KINDS = {
    "DeepseekV4ForCausalLM": "compressed sparse attention and hyper-connections",
    "KimiK3ForConditionalGeneration": "delta attention with latent experts",
    "MiniMaxM3ForCausalLM": "block-sparse attention",
    "MiniMaxM3SparseForConditionalGeneration": "block-sparse attention",
    "Step3p7FlashForCausalLM": "attention with two sets of heads",
    "Step3p7ForConditionalGeneration": "attention with two sets of heads",
    "Step3p5ForCausalLM": "attention with two sets of heads",
    "Step3p5FlashForCausalLM": "attention with two sets of heads",
}

# What ends the name of an architecture that answers nothing.
_NO_TEXT = ("MaskedLM", "Classification", "QuestionAnswering", "PreTraining", "Embedding", "RewardModel")

# Norms of queries and keys that are priced (config.json does not say so itself).
_QK_NORM = frozenset({"Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "MiniMaxM2ForCausalLM"})


def family_of(architecture: str, config: Mapping[str, Any], *, experts: int) -> Family:
    """Return the family of an architecture; `config` is its language part.

    Raises:
        ConfigError: it is known to compute in another way than all families.
    """
    if architecture in UNKNOWN_KINDS:
        raise ConfigError(
            f"models of architecture {architecture} cannot be planned yet: {UNKNOWN_KINDS[architecture]}",
            hint="a model of the same size with plain attention gives a first idea",
        )
    if architecture.endswith(_NO_TEXT) or architecture.startswith(("Bert", "Roberta", "XLMRoberta")):
        raise ConfigError(
            f"models of architecture {architecture} generate no text", hint="a plan is for models that do"
        )
    if config.get("is_encoder_decoder"):
        raise ConfigError("models with an encoder for their input cannot be planned")
    if architecture in FAMILIES:
        return FAMILIES[architecture]
    if config.get("index_topk") and config.get("kv_lora_rank"):
        return "DEEPSEEKV32"
    if config.get("kv_lora_rank") and experts:
        return "DEEPSEEK"
    return "MOE" if experts else "LLAMA"


def has_qk_norm(architecture: str) -> bool:
    """Tell whether queries and keys are normalised before attention."""
    return architecture in _QK_NORM
