"""Read from a config.json how its layers differ, and the sizes of what is not plain attention."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, TypedDict

from aegis.planner.models.fields import shown
from aegis.planner.models.shapes import (
    LATENT_FAMILIES,
    Block,
    DeltaNet,
    Indexer,
    Layer,
    Mamba,
    Mla,
    Window,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.planner.models.fields import Fields
    from aegis.planner.models.shapes import Family, Ffn, Mixer

# Of layer_types.
MIXERS: dict[str, Mixer] = {
    "full_attention": "full",
    "deepseek_sparse_attention": "full",
    "sliding_attention": "window",
    "chunked_attention": "window",
    "linear_attention": "linear",
    "attention": "full",
    "global": "full",
    "local": "window",
}
# Of hybrid_override_pattern (one letter a layer) and layers_block_type (one word a layer).
HYBRID: dict[str, Layer] = {
    "M": Layer("mamba", "none"),
    "*": Layer("full", "none"),
    "-": Layer("none", "dense"),
    "E": Layer("none", "moe"),
    "mamba": Layer("mamba", "none"),
    "attention": Layer("full", "none"),
    "mlp": Layer("none", "dense"),
    "moe": Layer("none", "moe"),
}


class Parts(TypedDict, total=False):
    """What only some models have."""

    window: Window | None
    full: Window | None
    mla: Mla | None
    indexer: Indexer | None
    mamba: Mamba | None
    delta_net: DeltaNet | None
    blocks: tuple[Block, ...]


def read_parts(fields: Fields, *, architecture: str, family: Family, layers: int) -> Parts:
    """Return the sizes of windows, latent attention, Mamba2, delta nets and blocks.

    Raises:
        ConfigError: a size that this family needs is missing or strange.
    """
    parts = Parts(window=_window(fields, architecture))
    if family in LATENT_FAMILIES:
        parts["mla"] = _mla(fields)
    if family == "DEEPSEEKV32":
        parts["indexer"] = Indexer(
            heads=fields.size("index_n_heads"),
            head_size=fields.size("index_head_dim"),
            topk=fields.size("index_topk"),
            choosing=_choosing(fields, layers),
        )
    if family == "NEMOTRONH":
        parts["mamba"] = Mamba(
            heads=fields.size("mamba_num_heads"),
            head_size=fields.size("mamba_head_dim"),
            state=fields.size("ssm_state_size"),
            conv=fields.size("conv_kernel"),
            groups=fields.size("n_groups"),
            chunk=fields.size("chunk_size"),
        )
    if family == "QWEN35":
        parts["delta_net"] = _delta_net(fields)
    if family == "NEMOTRONNAS":
        parts["blocks"] = _blocks(fields)
    if family == "GEMMA4MIX":
        parts["full"] = Window(
            size=0,
            kv_heads=fields.count("num_global_key_value_heads"),
            head_size=fields.count("global_head_dim"),
        )
    return parts


def read_kinds(fields: Fields, *, architecture: str, layers: int, experts: int) -> tuple[Layer, ...]:
    """Return the kind of each layer, or nothing if all are alike.

    Raises:
        ConfigError: a list has too few entries, or a kind that is not known.
    """
    pattern = _hybrid(fields, layers)
    if pattern is not None:
        return pattern
    mixers, ffns = _mixers(fields, architecture, layers), _ffns(fields, architecture, layers, experts)
    if mixers is None and ffns is None:
        return ()
    usual: Ffn = "moe" if experts else "dense"
    first: list[Mixer] = mixers or ["full"] * layers
    return tuple(Layer(*both) for both in zip(first, ffns or [usual] * layers, strict=True))


def _hybrid(fields: Fields, layers: int) -> tuple[Layer, ...] | None:
    for key in ("hybrid_override_pattern", "layers_block_type"):
        value = fields.values.get(key)
        if not isinstance(value, list | str) or not value:
            continue
        for each in value:
            if not isinstance(each, str) or each not in HYBRID:
                raise fields.error(key, f"has a layer {shown(each)}: known are {' '.join(HYBRID)}")
        if len(value) != layers:
            raise fields.error(key, f"has {len(value)} entries for {layers} layers")
        return tuple(HYBRID[each] for each in value)
    return None


def _mixers(fields: Fields, architecture: str, layers: int) -> list[Mixer] | None:
    if architecture == "Llama4ForConditionalGeneration":
        return ["full" if index % 2 else "window" for index in range(layers)]
    flags = fields.per_layer("hybrid_layer_pattern", layers)  # MiMo: 1 is full
    if flags is not None:
        return ["full" if each == 1 else "window" for each in flags]
    named = fields.per_layer("layer_types", layers)
    if named is None:
        return None
    for each in named:
        if not isinstance(each, str) or each not in MIXERS:
            raise fields.error("layer_types", f"has a layer {shown(each)}: known are {' '.join(MIXERS)}")
    return [MIXERS[each] for each in named]


def _ffns(fields: Fields, architecture: str, layers: int, experts: int) -> list[Ffn] | None:
    if not experts:
        return None
    if architecture == "Llama4ForConditionalGeneration":
        step = fields.count("interleave_moe_layer_step") or 1
        return ["dense" if (index + 1) % step else "moe" for index in range(layers)]
    flags = fields.per_layer("moe_layer_freq", layers)
    return None if flags is None else ["moe" if each == 1 else "dense" for each in flags]


def _choosing(fields: Fields, layers: int) -> int:
    """Return how many layers choose the tokens that they read: one in so many, after the first few."""
    pattern = fields.values.get("index_topk_pattern")
    if isinstance(pattern, str | list) and pattern:
        return layers - sum(1 for each in pattern[:layers] if each == "S")
    every = fields.count("index_topk_freq") or 1
    first = fields.count("index_skip_topk_offset") or 2
    return sum(1 for layer in range(layers) if max(layer - first + 1, 0) % every == 0)


def _window(fields: Fields, architecture: str) -> Window | None:
    if fields.values.get("use_sliding_window") is False:
        return None
    if architecture == "Llama4ForConditionalGeneration":
        size = fields.count("attention_chunk_size")
    else:
        size = fields.count("sliding_window_size", "sliding_window")
    if not size:
        return None
    return Window(
        size=size,
        kv_heads=fields.count("swa_num_key_value_heads"),
        head_size=fields.count("swa_head_dim"),
        value_size=fields.count("swa_v_head_dim"),
    )


def _mla(fields: Fields) -> Mla:
    return Mla(
        q_rank=fields.count("q_lora_rank"),
        kv_rank=fields.size("kv_lora_rank"),
        nope_size=fields.size("qk_nope_head_dim"),
        rope_size=fields.size("qk_rope_head_dim"),
        value_size=fields.size("v_head_dim"),
    )


def _delta_net(fields: Fields) -> DeltaNet:
    state = fields.values.get("mamba_ssm_dtype")
    return DeltaNet(
        key_heads=fields.size("linear_num_key_heads"),
        key_size=fields.size("linear_key_head_dim"),
        value_heads=fields.size("linear_num_value_heads"),
        value_size=fields.size("linear_value_head_dim"),
        conv=fields.size("linear_conv_kernel_dim"),
        state_type=state if isinstance(state, str) else "float32",
    )


def _blocks(fields: Fields) -> tuple[Block, ...]:
    """Return the blocks of a searched architecture, equal ones together."""
    found = Counter(_block(fields, each) for each in fields.objects("block_configs"))
    if not found:
        raise fields.error("block_configs", "is missing")
    return tuple(
        Block(count=count, heads_per_group=group, ffn_multiple=multiple)
        for (group, multiple), count in found.most_common()
    )


def _block(fields: Fields, block: Mapping[str, Any]) -> tuple[int | None, float | None]:
    attention, ffn = (
        part if isinstance(part := block.get(key), dict) else {} for key in ("attention", "ffn")
    )
    group, multiple = attention.get("n_heads_in_group"), ffn.get("ffn_mult", 3.5)
    has_attention, has_ffn = attention.get("no_op") is not True, ffn.get("no_op") is not True
    if has_attention and not (isinstance(group, int) and 0 < group <= 4096):  # noqa: PLR2004 - heads
        raise fields.error("block_configs", "has a block without a sane `n_heads_in_group`")
    if has_ffn and not (isinstance(multiple, int | float) and 0 < multiple < 1000):  # noqa: PLR2004 - far beyond any
        raise fields.error("block_configs", "has a block without a sane `ffn_mult`")
    return (group if has_attention else None, float(multiple) if has_ffn else None)
