"""What a GPU of a worker does in one step of a model: pure data, per GPU, named as the tables name them.

An operation is asked for its latency at a `Query`; `count` says how often it occurs in a step (mostly once a layer).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from msgspec import Struct

from aegis.errors import AegisError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aegis.planner.systems import System

Floats: TypeAlias = "NDArray[np.float64]"
Ints: TypeAlias = "NDArray[np.int64]"
CollectiveKind: TypeAlias = Literal["all_gather", "reduce_scatter", "alltoall", "all_reduce"]
Kind: TypeAlias = Literal[
    "gemm", "attention", "experts", "link", "memory", "host"
]  # of what takes time in a step
Phase: TypeAlias = Literal["context", "generation"]


class Query(NamedTuple):
    """Where operations are evaluated: arrays that broadcast against each other, one element per configuration."""

    tokens: Ints  # that pass through the layers in this step
    batch: Ints  # sequences of this step
    length: Ints  # new tokens of a sequence (context), or length so far (generation)
    prefix: Ints  # tokens of a sequence that are cached already (context only)
    sampled: Ints  # sequences that a next token is sampled for: the rows of the logits


def query(
    *, tokens: object, batch: object, length: object, prefix: object = 0, sampled: object = None
) -> Query:
    """Return a query of numbers or arrays; `sampled` is the batch unless said."""
    values = (tokens, batch, length, prefix, batch if sampled is None else sampled)
    return Query(*(np.asarray(value, dtype=np.int64) for value in values))


class _Operation(Struct, frozen=True, kw_only=True):
    name: str  # as the breakdown shows it, e.g. context_qkv_gemm
    count: float = 1.0  # times in a step


class Memory(_Operation, frozen=True, kw_only=True):
    """Bound by memory: embedding, norms, activations."""

    bytes_per_token: float
    token_split: int = 1  # context parallel: each GPU sees ceil(tokens / split)


class Gemm(_Operation, frozen=True, kw_only=True):
    """(tokens, k) x (k, n)."""

    n: int
    k: int
    quant: str
    token_split: int = 1
    quantized_input: bool = False  # the operation before it writes the low precision already (fp8_static)
    sampled: bool = False  # sees only the tokens that are sampled from: the logits
    below_grid: bool = False  # may be narrower than all that was measured: then the speed of light answers


class ContextAttention(_Operation, frozen=True, kw_only=True):
    """Attention of new tokens to all tokens so far."""

    heads: int
    kv_heads: int
    head_size: int
    window: int = 0  # sliding window; 0: all
    kv_cache: str
    fmha: str
    qk_norm: bool = False
    lanes: tuple[str, ...] = ("default",)  # kernel sources, in order of preference
    cp: int = 1


class GenerationAttention(_Operation, frozen=True, kw_only=True):
    """Attention of one new token of each sequence to its KV cache."""

    heads: int
    kv_heads: int
    head_size: int
    window: int = 0
    kv_cache: str
    lanes: tuple[str, ...] = ("default",)


class ContextMla(_Operation, frozen=True, kw_only=True):
    """Latent attention of new tokens, without its projections."""

    heads: int
    kv_cache: str
    fmha: str
    cp: int = 1
    wide: bool = False  # as it runs beside wide experts: measured apart


class GenerationMla(_Operation, frozen=True, kw_only=True):
    """Latent attention of one new token of each sequence."""

    heads: int
    kv_cache: str
    wide: bool = False


class MlaBmm(_Operation, frozen=True, kw_only=True):
    """Batched product that goes into (`pre`) or out of (`post`) the latent space."""

    heads: int
    quant: str
    stage: Literal["pre", "post"]


class MlaModule(_Operation, frozen=True, kw_only=True):
    """The whole latent-attention block, projections and all, as one measured piece."""

    phase: Phase
    heads: int  # of this GPU
    native_heads: int  # of the model
    kv_cache: str
    fmha: str
    gemm: str


class Moe(_Operation, frozen=True, kw_only=True):
    """Routed experts. Sees tokens * attention_dp."""

    hidden: int
    inter: int
    topk: int
    experts: int
    moe_tp: int
    moe_ep: int
    attention_dp: int
    quant: str
    distribution: str  # of tokens over experts, e.g. power_law_1.2
    gated: bool = True
    wide: Phase | None = None  # as wide experts run in this phase: measured apart


class ExpertExchange(_Operation, frozen=True, kw_only=True):
    """Tokens on their way to the GPUs of their experts, or back: one stage of a measured all-to-all transport."""

    transport: str  # e.g. deepep_ht
    stage: Literal["prepare", "dispatch", "combine"]
    format: str  # in which tokens travel, as the tables name it
    gpus: int
    nodes: int
    hidden: int
    topk: int
    experts: int
    attention_split: int = 1  # GPUs that share the tokens of an attention group


class AllReduce(_Operation, frozen=True, kw_only=True):
    """The engine's own all-reduce of tokens * width elements."""

    gpus: int
    width: float
    token_split: int = 1


class Collective(_Operation, frozen=True, kw_only=True):
    """NCCL (or oneCCL); tokens * width is the size of the gathered message, in elements."""

    kind: CollectiveKind
    gpus: int
    width: float
    token_split: int = 1


class PointToPoint(_Operation, frozen=True, kw_only=True):
    """Hidden states sent on to the next pipeline stage."""

    bytes_per_token: float
    token_split: int = 1


class Measured(_Operation, frozen=True, kw_only=True):
    """Any other measured piece (Mamba2, GDN, DSA, ...): `table` names it, `key` are its fixed keys by column.

    `axes` says which keys of the query the table is entered with, in the order of its columns.
    """

    table: str
    key: tuple[tuple[str, str | int | float], ...]
    phase: Phase


class Overlap(_Operation, frozen=True, kw_only=True):
    """Two chains that run at the same time: the longer one counts. The chains carry their own counts."""

    first: tuple[Operation, ...]
    second: tuple[Operation, ...]


class Fallback(_Operation, frozen=True, kw_only=True):
    """`primary`, or where its table has no such key, all of `otherwise`."""

    primary: tuple[Operation, ...]
    otherwise: tuple[Operation, ...]


Leaf: TypeAlias = (
    Memory
    | Gemm
    | ContextAttention
    | GenerationAttention
    | ContextMla
    | GenerationMla
    | MlaBmm
    | MlaModule
    | Moe
    | ExpertExchange
    | AllReduce
    | Collective
    | PointToPoint
    | Measured
)
Operation: TypeAlias = Leaf | Overlap | Fallback


def kind_of(operation: Leaf) -> Kind:
    """Return which kind of work an operation is."""
    match operation:
        case Gemm():
            return "gemm"
        case Moe():
            return "experts"
        case AllReduce() | Collective() | PointToPoint() | ExpertExchange():
            return "link"
        case Memory():
            return "memory"
        case _:
            return "attention"


class NoData(AegisError):
    """The tables of a system cannot answer for an operation; a split that needs it is left out."""


class Performance(Protocol):
    """What answers for single operations: measured tables, a formula, or one after the other."""

    @property
    def system(self) -> System:
        """The hardware."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of these figures: estimated, or a table that contradicts its neighbours."""

    def latency(self, operation: Leaf, at: Query) -> Floats:
        """Return ms of ONE occurrence (without `count`), in the shape that the query broadcasts to.

        Raises:
            NoData: no figures for this operation.
        """
