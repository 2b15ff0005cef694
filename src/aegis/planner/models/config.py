"""Read the shape of a model from its config.json. Total: whatever stands there, the answer is a shape or a clear error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from aegis.errors import ConfigError
from aegis.planner.models.architectures import family_of, has_qk_norm
from aegis.planner.models.checkpoint import read_checkpoint
from aegis.planner.models.fields import Fields
from aegis.planner.models.layers import read_kinds, read_parts
from aegis.planner.models.shapes import LATENT_FAMILIES, ModelShape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aegis.planner.models.shapes import Family

# Where the language part of a model of several parts stands.
PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
DEEPEST = 4

# The same size under several names, in the order in which they are looked for.
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_head_kv",
    "multi_query_group_num",
    "num_attention_groups",
)
HIDDEN = ("hidden_size", "n_embd", "d_model")
INTER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
EXPERTS = ("num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts")
TOPK = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "num_experts_per_token", "moe_topk")


def read_config(path: Path) -> ModelShape:
    """Return the shape of the model whose config.json (or whose directory) this is.

    Raises:
        ConfigError: it cannot be read, or a size is missing or strange; with file and key.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = msgspec.json.decode(file.read_bytes())
        beside = file.with_name("hf_quant_config.json")  # what ModelOpt writes
        quantization = msgspec.json.decode(beside.read_bytes()) if beside.is_file() else None
    except OSError as error:
        raise ConfigError(
            f"{file}: {error.strerror or error}", hint="give a config.json or its directory"
        ) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: this is no JSON: {error}") from error
    if isinstance(config, dict) and quantization is not None:
        config = {"hf_quant_config": quantization, **config}
    return parse_config(config, where=str(file), name=str(path))


def parse_config(config: object, *, where: str, name: str) -> ModelShape:
    """Return the shape that a decoded config.json describes; `where` names it in errors.

    Raises:
        ConfigError: a size is missing or strange, with its key.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"{where}: a config.json is an object, not {type(config).__name__}")
    text = _language_part(config)
    fields = Fields(where, text)
    architecture = _architecture(config) or _architecture(text) or "unknown"
    experts = fields.count(*EXPERTS)
    family = family_of(architecture, text, experts=experts)
    return _shape(fields, name=name, architecture=architecture, family=family, config=config)


def _shape(
    fields: Fields, *, name: str, architecture: str, family: Family, config: Mapping[str, Any]
) -> ModelShape:
    layers = fields.layers(*LAYERS)
    heads, hidden = fields.size(*HEADS, most=4096), fields.size(*HIDDEN)
    experts, topk = fields.count(*EXPERTS), fields.count(*TOPK)
    inter = fields.count(*INTER) or (0 if experts or family == "NEMOTRONNAS" else 4 * hidden)
    moe_inter = fields.count("moe_intermediate_size") or (inter if experts else 0)
    head_size = fields.count("head_dim", "attention_head_dim") or hidden // heads
    if experts and not topk:
        raise fields.error(TOPK[0], f"is missing, though there are {experts} experts")
    if not head_size:
        raise fields.error(HIDDEN[0], f"is {hidden}, less than {heads} heads")
    if family in LATENT_FAMILIES and not experts:
        raise fields.error(EXPERTS[1], "is missing: latent attention is known with experts only")
    if fields.count(*KV_HEADS) > heads:
        raise fields.error(KV_HEADS[0], f"is {fields.count(*KV_HEADS)}, more than the {heads} heads")
    default_kv = 0 if family == "NEMOTRONNAS" else heads
    return ModelShape(
        name=name,
        architecture=architecture,
        family=family,
        layers=layers,
        heads=heads,
        kv_heads=fields.count(*KV_HEADS) or default_kv,
        head_size=head_size,
        hidden=hidden,
        inter=inter,
        vocab=fields.size("vocab_size"),
        context=fields.count(*CONTEXT) or 2048,
        experts=experts,
        topk=min(topk, experts),
        moe_inter=moe_inter,
        shared_inter=_shared_inter(fields, moe_inter) if experts else 0,
        latent_inter=fields.count("moe_latent_size"),
        dense_inter=fields.count("intermediate_size_mlp"),
        mtp_layers=fields.count("num_nextn_predict_layers", "mtp_num_hidden_layers"),
        qk_norm=has_qk_norm(architecture),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        value_size=fields.count("v_head_dim"),
        shared_kv=fields.flag("attention_k_eq_v"),
        kinds=read_kinds(fields, architecture=architecture, layers=layers, experts=experts),
        checkpoint=read_checkpoint(config, fields.where, language=fields.values),
        **read_parts(fields, architecture=architecture, family=family, layers=layers),
    )


def _shared_inter(fields: Fields, moe_inter: int) -> int:
    width = fields.count(
        "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "share_expert_dim"
    )
    return width or fields.count("n_shared_experts", "num_shared_experts") * moe_inter


def _language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(DEEPEST):
        inner = next((config[part] for part in PARTS if isinstance(config.get(part), dict)), None)
        if inner is None:
            break
        config = inner
    return config


def _architecture(config: Mapping[str, Any]) -> str | None:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first if isinstance(first, str) else None
