"""Wide experts: tokens travel by a measured all-to-all transport, and every GPU has the shared experts as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from aegis.planner.models.families import experts
from aegis.planner.models.wide import stages_of, travel_format
from aegis.planner.operations import Collective, ContextMla, ExpertExchange, GenerationMla, Overlap

if TYPE_CHECKING:
    from aegis.planner.models.families.step import Step
    from aegis.planner.models.wide import Stage
    from aegis.planner.operations import CollectiveKind, Operation

# TensorRT-LLM starts the kernels of a decode step before those before them end.
EARLY_START = 0.9


def expert_block(
    step: Step, *, distribution: str, shared_inter: int = 0, shared_format: str | None = None
) -> list[Operation]:
    """Return the shared and the routed experts of all layers."""
    layers = step.model.layers
    alone = _shared(step, shared_inter, shared_format)
    routed = _routed(step, distribution)
    if step.backend != "trtllm" or not alone:
        return [*alone, *routed]
    total = step.memory("moe_reduce_add", 2 * step.model.hidden, step.model.hidden, count=layers)
    if step.in_context:
        return [*alone, *routed, total]
    return [Overlap(name=step.named("moe_overlap"), first=tuple(routed), second=tuple(alone)), total]


def started_early(step: Step) -> Step:
    """Return a step whose layers take less, where TensorRT-LLM starts their kernels early; for what is in them."""
    early = step.transport and step.backend == "trtllm" and not step.in_context
    return step._replace(factor=step.factor * EARLY_START) if early else step


def around_attention(step: Step, attention: list[Operation]) -> list[Operation]:
    """Return attention of SGLang: prompts are gathered before it, for it alone is split by tp."""
    if not step.in_context or step.split.tp == 1:
        return attention
    return [_share(step, "all_gather"), *attention, _share(step, "reduce_scatter")]


def latent_attention(step: Step) -> list[Operation]:
    """Return latent attention of SGLang. The product into the latent space counts twice, as the original has it."""
    model, layers, heads = step.model, step.model.layers, step.heads
    mla = model.mla
    width = mla.q_rank + mla.kv_rank + mla.rope_size if mla is not None else 0
    tokens = _shared_tokens(step)
    kernel = (
        ContextMla(
            name="context_attention",
            count=float(layers),
            heads=heads,
            kv_cache=step.quantization.kv_cache,
            fmha="fp8_block",
            cp=step.token_split,
            wide=True,
        )
        if step.in_context
        else GenerationMla(
            name="generation_attention",
            count=float(layers * step.factor),
            heads=heads,
            kv_cache=step.quantization.kv_cache,
            wide=True,
        )
    )
    again = step.gemm("downscale_gemm", width, model.hidden, count=layers)
    return [
        tokens.gemm("qkv_a_proj_gemm", width, model.hidden, count=layers),
        step.embedding(),
        step.norm("add_norm_1", count=layers),
        *around_attention(step, [again, kernel, *step.gather_cache()]),
    ]


def _routed(step: Step, distribution: str) -> list[Operation]:
    layers = step.model.layers
    router, compute = experts.router_and_experts(step, count=layers, distribution=distribution)
    silent = step.backend == "sglang" and step.model.family in {"DEEPSEEK", "DEEPSEEKV32"}
    before, back = stages_of(step.transport)[:-1], stages_of(step.transport)[-1]
    return [
        *([] if silent else [router]),
        *(_exchange(step, stage) for stage in before),
        compute,
        _exchange(step, back),
    ]


def _exchange(step: Step, stage: Stage) -> ExpertExchange:
    model, split, transport = step.model, step.split, step.transport
    sm = step.system.sm_version
    sent = "dispatch" if stage == "prepare" else stage
    name = travel_format(transport, step.quantization.moe, stage=sent, phase=step.phase, sm_version=sm)
    shared = transport.startswith("deepep") and step.in_context
    return ExpertExchange(
        name=step.named(f"moe_{stage}"),
        count=float(model.layers * step.factor),
        transport=transport,
        stage=stage,
        format=name or "",
        gpus=split.moe_ep,
        nodes=-(-split.moe_ep // step.system.gpus_per_node),
        hidden=model.hidden,
        topk=model.topk,
        experts=model.experts,
        attention_split=split.tp * split.cp if shared else 1,
    )


def _shared(step: Step, inter: int, quant: str | None) -> list[Operation]:
    layers = step.model.layers
    tokens = step if step.backend == "trtllm" else _shared_tokens(step)
    return experts.shared(tokens, count=layers, inter=inter, quant=quant, parts=1)


def _shared_tokens(step: Step) -> Step:
    """Return a step whose GPUs share the tokens of a prompt: those of a tensor split too."""
    together = step.split.tp * step.split.cp
    return step._replace(split=replace(step.split, cp=together))


def _share(step: Step, kind: CollectiveKind) -> Collective:
    return Collective(
        name=step.named(f"tp_{kind}"),
        count=float(step.model.layers),
        kind=kind,
        gpus=step.split.tp,
        width=float(step.model.hidden),
    )
