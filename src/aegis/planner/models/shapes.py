"""The shape of a model: what its config.json says, in one vocabulary."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

# How the operations of a model are built: one module of `families` each, or a variant of one.
Family: TypeAlias = Literal[
    "LLAMA",  # dense
    "GPT",  # dense, without a gate
    "MOE",
    "DEEPSEEK",  # latent attention, routed and shared experts
    "KIMIK25",
    "DEEPSEEKV32",  # the same with sparse attention (indexer)
    "NEMOTRONNAS",  # blocks of different widths
    "HYBRIDMOE",  # windowed and full attention, dense and expert layers
    "GEMMA4MIX",
    "QWEN35",  # gated delta net
    "NEMOTRONH",  # Mamba2
]
LATENT_FAMILIES = frozenset({"DEEPSEEK", "KIMIK25", "DEEPSEEKV32"})

Mixer: TypeAlias = Literal["full", "window", "linear", "mamba", "none"]
Ffn: TypeAlias = Literal["dense", "moe", "none"]


class Layer(NamedTuple):
    """One layer: what mixes its tokens, and what follows."""

    mixer: Mixer
    ffn: Ffn


class Window(Struct, frozen=True, kw_only=True):
    """Attention to the last tokens only. Zeros: as in the other layers."""

    size: int
    heads: int = 0
    kv_heads: int = 0
    head_size: int = 0
    value_size: int = 0


class Mla(Struct, frozen=True, kw_only=True):
    """Latent attention: ranks of the compressed queries, keys and values; sizes of a head."""

    q_rank: int  # 0: queries are not compressed
    kv_rank: int
    nope_size: int
    rope_size: int
    value_size: int


class Indexer(Struct, frozen=True, kw_only=True):
    """What chooses the tokens that sparse attention reads."""

    heads: int
    head_size: int
    topk: int
    choosing: int  # layers that choose; the others read what the one before chose


class Mamba(Struct, frozen=True, kw_only=True):
    """A Mamba2 mixer."""

    heads: int
    head_size: int
    state: int
    conv: int
    groups: int
    chunk: int


class DeltaNet(Struct, frozen=True, kw_only=True):
    """A gated delta net: linear attention."""

    key_heads: int
    key_size: int
    value_heads: int
    value_size: int
    conv: int
    state_type: str = "float32"


class Block(Struct, frozen=True, kw_only=True):
    """Equal blocks of a searched architecture. None: left out."""

    count: int
    heads_per_group: int | None
    ffn_multiple: float | None


class Checkpoint(Struct, frozen=True, kw_only=True):
    """How the weights are stored."""

    algorithm: str | None = None  # as the checkpoint calls it; None: not quantized
    gemm: str = "bfloat16"
    moe: str = "bfloat16"
    kv_cache: str | None = None  # if the checkpoint asks for one
    dynamic: bool | None = None  # activations are scaled as they come
    # Formats of parts that are stored otherwise than `gemm` says: the projections q, kv, o and indexer of latent
    # attention, "mixer" (projections of any attention), "mlp" (dense halves), "shared" (experts that see all tokens).
    parts: tuple[tuple[str, str], ...] = ()
    block: int = 128  # of fp8_block: sizes of experts must be multiples

    def format_of(self, part: str) -> str | None:
        """Return the format of a part that is stored in one of its own."""
        return dict(self.parts).get(part)


class ModelShape(Struct, frozen=True, kw_only=True):
    """What operation lists are built from. Sizes in elements, of the whole model; 0: there is none."""

    name: str
    architecture: str
    family: Family
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    inter: int
    vocab: int
    context: int  # tokens
    experts: int = 0
    topk: int = 0
    moe_inter: int = 0  # of one expert
    shared_inter: int = 0  # of all shared experts together
    latent_inter: int = 0  # experts work on a compressed hidden state of this size
    dense_inter: int = 0  # of dense layers among expert layers, if not `inter`
    mtp_layers: int = 0
    qk_norm: bool = False
    tied_embeddings: bool = False
    value_size: int = 0  # of an attention head, if not `head_size`
    shared_kv: bool = False  # full attention: values are the keys
    kinds: tuple[Layer, ...] = ()  # one a layer; empty: all alike
    window: Window | None = None
    full: Window | None = None  # geometry of full attention where `head_size` is that of windows (Gemma 4)
    mla: Mla | None = None
    indexer: Indexer | None = None
    mamba: Mamba | None = None
    delta_net: DeltaNet | None = None
    blocks: tuple[Block, ...] = ()
    checkpoint: Checkpoint = Checkpoint()

    @property
    def has_experts(self) -> bool:
        """Whether tokens are routed to experts."""
        return self.experts > 0

    @property
    def latent(self) -> bool:
        """Whether the KV cache is one compressed vector, which tensor parallelism does not divide."""
        return self.family in LATENT_FAMILIES

    def count(self, mixer: Mixer | None = None, ffn: Ffn | None = None) -> int:
        """Return how many layers are of these kinds (None: any)."""
        return sum(mixer in (None, each.mixer) and ffn in (None, each.ffn) for each in self.kinds)
