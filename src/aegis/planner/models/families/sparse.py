"""DeepSeek-V3.2 and GLM-5: an indexer chooses the tokens that latent attention reads; measured as one piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.models.families import experts, wide
from aegis.planner.models.formats import bytes_of
from aegis.planner.operations import Measured, Overlap

if TYPE_CHECKING:
    from aegis.planner.models.families.step import Step
    from aegis.planner.operations import Operation

DISTRIBUTION = "power_law_1.01"


def operations(step: Step) -> list[Operation]:
    """Return the operations of one step."""
    if step.transport and step.backend == "sglang":
        return [*wide.around_attention(step, _attention(step)), *_experts(step)]
    layers, layer = step.model.layers, wide.started_early(step)
    return [
        step.embedding(),
        layer.norm("add_norm_1", count=layers),
        *_attention(layer),
        layer.norm("add_norm_2", count=layers),
        *_experts(layer),
        step.logits(),
        *step.send_on(split=False),
    ]


def attention_weights(step: Step) -> float:
    """Return the bytes of the attention blocks, which are measured as a whole."""
    model, tp, formats = step.model, step.split.tp, _formats(step)
    mla, indexer = model.mla, model.indexer
    if mla is None or indexer is None:
        return 0.0
    heads = model.heads // tp
    query = model.hidden * mla.q_rank + mla.q_rank * heads * (mla.nope_size + mla.rope_size)
    latent = model.hidden * (mla.kv_rank + mla.rope_size)
    latent += mla.kv_rank * heads * (mla.nope_size + mla.value_size)
    out = heads * mla.value_size * model.hidden
    chooses = mla.q_rank * indexer.heads * indexer.head_size + model.hidden * indexer.heads
    sizes = {"q": query, "kv": latent, "o": out, "indexer": chooses}
    return model.layers * sum(size * bytes_of(formats[part]) for part, size in sizes.items())


def _attention(step: Step) -> list[Operation]:
    """Return the layers that choose their tokens, and those that do not: only SGLang's were measured apart."""
    layers, indexer = step.model.layers, step.model.indexer
    choosing = layers if indexer is None or step.backend != "sglang" else indexer.choosing
    kinds = (("full", choosing), ("skip", layers - choosing))
    return [_block(step, lane, count) for lane, count in kinds if count]


def _block(step: Step, lane: str, count: int) -> Measured:
    formats = _formats(step)
    one = set(formats.values())
    key: list[tuple[str, str | int | float]] = [
        ("lane", lane),
        *([("fmha", step.quantization.fmha)] if step.in_context else []),
        ("kv_cache", step.quantization.kv_cache),
        ("gemm", one.pop() if len(one) == 1 else formats["o"]),  # most of the bytes are o's
        ("architecture", step.model.architecture),
        ("heads", step.heads),
    ]
    return Measured(
        name=step.named("attention"),
        count=float(count * step.factor),
        table=f"dsa_{step.phase}_module",
        key=tuple(key),
        phase=step.phase,
    )


def _formats(step: Step) -> dict[str, str]:
    stored = dict(step.model.checkpoint.parts)
    return {part: stored.get(part, step.quantization.gemm) for part in ("q", "kv", "o", "indexer")}


def _experts(step: Step) -> list[Operation]:
    """Return shared and routed experts; shared ones are split as the routed ones are."""
    layers, inter = step.model.layers, step.model.shared_inter
    kept = step.model.checkpoint.format_of("shared")
    if step.transport:
        quant = kept if step.backend == "trtllm" else None
        return wide.expert_block(step, distribution=DISTRIBUTION, shared_inter=inter, shared_format=quant)
    alone = experts.shared(step, count=layers, inter=inter, quant=kept, parts=step.split.moe_tp)
    routed = experts.routed(step, count=layers, distribution=DISTRIBUTION)
    if step.in_context:
        return [*alone, *routed]
    return [Overlap(name=step.named("moe_overlap"), first=tuple(routed), second=tuple(alone))]
