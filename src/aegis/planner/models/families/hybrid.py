"""Models that mix windowed and full attention, dense and expert layers: Llama 4, MiMo-V2, Gemma 4."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aegis.planner.models.families import experts
from aegis.planner.models.families.step import HALF
from aegis.planner.models.formats import bytes_of
from aegis.planner.operations import Collective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.models.families.step import Step
    from aegis.planner.models.shapes import Ffn, Mixer, ModelShape
    from aegis.planner.operations import Operation

DISTRIBUTION = "power_law_1.01"
WORD: dict[Mixer, str] = {"full": "global", "window": "swa"}  # as the measured pieces are called


class Heads(NamedTuple):
    """Attention of one kind of layers, of the whole model."""

    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    window: int
    shared_kv: bool = False

    def kv_width(self, tp: int) -> int:
        """Keys and values of a token on one GPU, as they are cached."""
        return -(-self.kv_heads // tp) * (self.head_size + self.value_size)


def heads_of(model: ModelShape, mixer: Mixer) -> Heads:
    """Return the attention of windowed or of full layers; what a kind does not say is the model's."""
    own = model.window if mixer == "window" else model.full
    size = (own.head_size if own is not None else 0) or model.head_size
    gemma = model.family == "GEMMA4MIX"
    value = own.value_size if own is not None and mixer == "window" else model.value_size
    return Heads(
        heads=(own.heads if own is not None else 0) or model.heads,
        kv_heads=(own.kv_heads if own is not None else 0) or model.kv_heads,
        head_size=size,
        value_size=size if gemma else value or model.head_size,
        window=model.window.size if model.window is not None and mixer == "window" else 0,
        shared_kv=gemma and mixer == "full" and model.shared_kv,
    )


def hybrid_operations(step: Step) -> list[Operation]:
    """Return the operations of one step of Llama 4 and MiMo-V2: four kinds of layers."""
    kinds: tuple[tuple[Mixer, Ffn], ...] = (
        ("full", "moe"),
        ("window", "moe"),
        ("window", "dense"),
        ("full", "dense"),
    )
    body = [each for mixer, ffn in kinds for each in _hybrid_layers(step, mixer, ffn)]
    return [step.embedding(), *body, step.logits(), *step.send_on(), *_gathers(step, ("full", "window"))]


def gemma_operations(step: Step) -> list[Operation]:
    """Return the operations of one step of Gemma 4: each layer has a dense and (with experts) an expert half."""
    kinds: tuple[Mixer, Mixer] = ("window", "full")
    body = [each for mixer in kinds for each in _gemma_layers(step, mixer)]
    return [step.embedding(), *body, step.logits(), *step.send_on(), *_gathers(step, kinds)]


def _hybrid_layers(step: Step, mixer: Mixer, ffn: Ffn) -> Iterator[Operation]:
    model, count = step.model, step.model.count(mixer, ffn)
    if not count:
        return
    word = WORD[mixer]
    dense = "_dense" if ffn == "dense" else ""
    yield from _attention(step, mixer, f"{word}{dense}", count)
    if ffn == "dense":
        yield step.norm(f"{word}_dense_ffn_norm", count=count)
        inter = (model.dense_inter or model.inter) // step.split.tp
        yield from _gated(step, f"{word}_dense", inter, count=count)
    else:
        yield step.norm(f"{word}_moe_norm", count=count)
        yield from experts.routed(
            step, count=count, distribution=DISTRIBUTION, prefix=f"{word}_", gathered="bfloat16"
        )


def _gemma_layers(step: Step, mixer: Mixer) -> Iterator[Operation]:
    model, count = step.model, step.model.count(mixer)
    if not count:
        return
    word = WORD[mixer]
    yield from _attention(step, mixer, word, count)
    yield step.norm(f"{word}_ffn_norm", count=count)
    inter = model.inter // step.split.tp
    yield from _gated(step, f"{word}_shared_mlp", inter, count=count, quant=step.part_format("mlp"))
    if model.has_experts:
        yield from experts.routed(
            step,
            count=count,
            distribution=DISTRIBUTION,
            prefix=f"{word}_",
            router=model.experts >= experts.FEWEST_ROUTED,
        )


def _attention(step: Step, mixer: Mixer, prefix: str, count: int) -> Iterator[Operation]:
    heads, tp, hidden = heads_of(step.model, mixer), step.split.tp, step.model.hidden
    kv_heads = -(-heads.kv_heads // tp)
    cached = kv_heads * heads.head_size if heads.shared_kv else heads.kv_width(tp)
    quant = step.part_format("mixer") if step.model.family == "GEMMA4MIX" else None
    into = heads.heads * heads.head_size // tp + cached
    yield step.norm(f"{prefix}_attn_norm", count=count)
    yield step.gemm(f"{prefix}_qkv_gemm", into, hidden, count=count, quant=quant)
    yield step.attention(
        count=count,
        heads=heads.heads // tp,
        kv_heads=kv_heads,
        head_size=heads.head_size,
        window=heads.window,
        qk_norm=False,
    )
    width = heads.heads * heads.value_size // tp
    yield step.gemm(f"{prefix}_proj_gemm", hidden, width, count=count, quant=quant, quantized_input=True)


def _gated(step: Step, prefix: str, inter: int, *, count: int, quant: str | None = None) -> list[Operation]:
    hidden = step.model.hidden
    return [
        step.gemm(f"{prefix}_gate_up_gemm", 2 * inter, hidden, count=count, quant=quant),
        step.memory(f"{prefix}_act", 2 * inter, inter, count=count),
        step.gemm(f"{prefix}_down_gemm", hidden, inter, count=count, quant=quant, quantized_input=True),
    ]


def _gathers(step: Step, kinds: tuple[Mixer, Mixer]) -> list[Operation]:
    """Return what context parallelism gathers: keys and values of each kind of layers, also those in windows."""
    if step.token_split == 1:
        return []
    width = bytes_of(step.quantization.kv_cache) / HALF
    return [
        Collective(
            name=f"context_cp_all_gather_{WORD[mixer]}",
            count=float(count),
            kind="all_gather",
            gpus=step.split.cp,
            width=heads_of(step.model, mixer).kv_width(step.split.tp) * width,
        )
        for mixer in kinds
        if (count := step.model.count(mixer))
    ]
