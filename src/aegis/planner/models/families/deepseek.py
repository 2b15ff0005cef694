"""DeepSeek-V3, R1 and Kimi-K2: latent attention, one shared expert beside routed ones.

All layers count as expert layers, also the first ones that are dense.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.models.families import experts, wide
from aegis.planner.operations import (
    ContextMla,
    Fallback,
    GenerationMla,
    MlaBmm,
    MlaModule,
    Overlap,
)

if TYPE_CHECKING:
    from aegis.planner.models.families.step import Step
    from aegis.planner.models.shapes import Mla
    from aegis.planner.operations import Gemm, Operation

DISTRIBUTION = "power_law_1.01"
TABLE_HEADS = (
    128  # latent attention was measured with DeepSeek-V3's heads; others are looked up as if they had them
)


def operations(step: Step) -> list[Operation]:
    """Return the operations of one step."""
    shared_format = step.part_format("shared")
    if step.transport and step.backend == "sglang":
        return [*wide.latent_attention(step), *expert_block(step, shared_format=shared_format)]
    count, layer = step.model.layers, wide.started_early(step)
    return [
        step.embedding(),
        layer.norm("add_norm_1", count=count),
        *_attention(layer),
        *step.gather_cache(),
        layer.norm("add_norm_2", count=count),
        *expert_block(layer, shared_format=shared_format),
        step.logits(),
        *_vllm_all_reduce(step),
        *step.send_on(split=False),
    ]


def expert_block(step: Step, *, shared_format: str | None) -> list[Operation]:
    """Return shared and routed experts: one after the other, but side by side where tokens are generated."""
    layers, inter = step.model.layers, step.model.shared_inter
    if step.transport:
        return wide.expert_block(
            step, distribution=DISTRIBUTION, shared_inter=inter, shared_format=shared_format
        )
    alone = experts.shared(step, count=layers, inter=inter, quant=shared_format)
    routed = experts.routed(step, count=layers, distribution=DISTRIBUTION)
    if step.in_context or step.rules == "guide" or not alone:
        return [*alone, *routed]
    return [Overlap(name=step.named("moe_overlap"), first=tuple(routed), second=tuple(alone))]


def _attention(step: Step) -> list[Operation]:
    """Return latent attention: as one measured piece, or where there is none, its parts."""
    formats = _Formats(step)
    parts = _parts(step, formats)
    if step.transport and step.backend == "trtllm":
        return _apart(step, parts)
    if step.rules == "guide" or formats.mixed:
        return parts
    whole = MlaModule(
        name=step.named("mla_module"),
        count=step.model.layers * step.factor / step.token_split,
        phase=step.phase,
        heads=step.heads,
        native_heads=step.model.heads,
        kv_cache=step.quantization.kv_cache,
        fmha=step.quantization.fmha,
        gemm=formats.output,
    )
    return [Fallback(name=step.named("mla_block"), primary=(whole,), otherwise=tuple(parts))]


def _apart(step: Step, parts: list[Operation]) -> list[Operation]:
    """Return the parts as TensorRT-LLM runs them beside wide experts: with a norm, and the cache written meanwhile."""
    mla, layers = _sizes(step), step.model.layers
    cached = mla.kv_rank + mla.rope_size
    write = step.memory("rope_kvcache", cached, cached, count=layers)
    down, *rest = (
        Overlap(name="generation_bmm_rope_overlap", first=(each,), second=(write,))
        if isinstance(each, MlaBmm) and each.stage == "pre"
        else each
        for each in parts
    )
    return [down, step.memory("q_a_layernorm", mla.q_rank, mla.q_rank, count=layers), *rest]


class _Formats:
    """The formats of the projections: a checkpoint may keep some of them in bfloat16."""

    def __init__(self, step: Step) -> None:
        gemm = step.quantization.gemm
        stored = dict(step.model.checkpoint.parts) if step.rules == "current" else dict[str, str]()
        self.query, self.latent, self.output = (stored.get(part, gemm) for part in ("q", "kv", "o"))
        self.down = self.query if self.query == self.latent else gemm  # one product for both
        self.mixed = len({self.query, self.latent, self.output}) > 1
        self.bmm = "bfloat16" if "bfloat16" in (self.latent, gemm) else "fp8"


def _parts(step: Step, formats: _Formats) -> list[Operation]:
    model, tp, layers = step.model, step.split.tp, step.model.layers
    mla = _sizes(step)
    down: list[Gemm] = [
        step.gemm(
            "downscale_gemm",
            mla.q_rank + mla.kv_rank + mla.rope_size,
            model.hidden,
            count=layers,
            quant=formats.down,
        ),
        step.gemm(
            "q_b_proj_gemm",
            model.heads * (mla.nope_size + mla.rope_size) // tp,
            mla.q_rank or model.hidden,
            count=layers,
            quant=formats.query,
        ),
    ]
    back = model.heads * mla.value_size // tp
    if step.rules == "guide" and not step.in_context:
        back = model.hidden // tp
    out = step.gemm("proj_gemm", model.hidden, back, count=layers, quant=formats.output)
    return [*down, *_core(step, formats, mla), out]


def _core(step: Step, formats: _Formats, mla: Mla) -> list[Operation]:
    model, tp, layers = step.model, step.split.tp, step.model.layers
    plain = step.attention(count=layers, head_size=mla.value_size, kv_heads=model.kv_heads // tp)
    if step.in_context:
        up = step.gemm(
            "kv_b_proj_gemm",
            model.heads * (mla.nope_size + mla.value_size) // tp,
            mla.kv_rank,
            count=layers,
            quant=formats.latent,
        )
        latent = ContextMla(
            name="context_attention",
            count=float(layers),
            heads=TABLE_HEADS // tp,
            kv_cache=step.quantization.kv_cache,
            fmha=step.quantization.fmha,
            cp=step.token_split,
        )
        return [up, plain if step.backend == "vllm" else latent]
    if step.backend == "vllm":
        return [plain]
    count = float(layers * step.factor)
    pre, post = (
        MlaBmm(name=step.named(f"bmm_{stage}"), count=count, heads=step.heads, quant=formats.bmm, stage=stage)
        for stage in ("pre", "post")
    )
    attention = GenerationMla(
        name="generation_attention",
        count=count,
        heads=TABLE_HEADS // tp,
        kv_cache=step.quantization.kv_cache,
    )
    return [pre, attention, post]


def _sizes(step: Step) -> Mla:
    mla = step.model.mla
    if mla is None:  # cannot be: whoever reads a model of this family reads its ranks
        raise AssertionError(step.model.name)
    return mla


def _vllm_all_reduce(step: Step) -> list[Operation]:
    """Return vLLM's all-reduces after attention and after experts."""
    if step.backend != "vllm" or step.rules == "guide":
        return []
    return step.all_reduce("tp_allreduce", count=2 * step.model.layers)
