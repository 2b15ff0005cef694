"""What a worker of one split computes and keeps: the operations of a step, its weights, its KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from aegis.planner.operations import Operation


class KvGroup(Struct, frozen=True):
    """Layers whose KV cache is alike: bytes of one token (all these layers, per GPU), kept for at most `window` tokens."""

    bytes_per_token: float
    window: int | None = None


class Graph(Struct, frozen=True, kw_only=True):
    """One GPU of one worker."""

    context: tuple[Operation, ...]
    generation: tuple[Operation, ...]
    weights: float  # bytes
    kv_groups: tuple[KvGroup, ...]
    layers: int
    family: str  # LLAMA, MOE, DEEPSEEK, ...: chooses the activation coefficients
    attention_width: int  # heads * head size of the whole model: what activations are sized by
    hidden: int
    experts: int = 0
    topk: int = 0
    wide: bool = False  # experts are reached by a measured all-to-all transport
