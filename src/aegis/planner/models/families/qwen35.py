"""Qwen3.5: three layers of gated delta net to one of full attention; dense, or experts beside a gated shared one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.models.families import experts
from aegis.planner.models.limits import SplitError
from aegis.planner.operations import Measured, Overlap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.models.families.step import Step
    from aegis.planner.models.shapes import DeltaNet
    from aegis.planner.operations import Operation

DISTRIBUTION = "power_law_1.2"
KERNELS = {
    "context": (("gdn_conv1d", "causal_conv1d_fn"), ("gdn_scan", "chunk_gated_delta_rule")),
    "generation": (
        ("gdn_conv1d", "causal_conv1d_update"),
        ("gdn_recurrence", "fused_sigmoid_gating_delta_rule_update"),
    ),
}


def operations(step: Step) -> list[Operation]:
    """Return the operations of one step.

    Raises:
        SplitError: the heads of the delta net cannot be divided.
    """
    return [
        step.embedding(),
        *step.all_reduce("embedding_ar", count=1),
        *_delta_net(step),
        *_attention(step),
        step.logits(),
        *step.send_on(),
    ]


def _delta_net(step: Step) -> Iterator[Operation]:
    count, net, tp = step.model.count("linear"), step.model.delta_net, step.split.tp
    if not count or net is None:
        return
    if net.key_heads % tp or net.value_heads % tp:
        raise SplitError(
            f"{net.key_heads} key and {net.value_heads} value heads of {step.model.name}'s linear attention "
            f"cannot be divided by tp {tp}"
        )
    hidden, values, quant = step.model.hidden, net.value_heads * net.value_size, step.part_format("mixer")
    yield step.norm("gdn_norm", count=count)
    into = 2 * (net.key_heads * net.key_size + values) // tp
    yield step.gemm("gdn_in_proj_gemm", into, hidden, count=count, quant=quant)
    yield step.gemm(
        "gdn_in_proj_ba_gemm", 2 * net.value_heads // tp, hidden, count=count, quant=quant, below_grid=True
    )
    for name, kernel in KERNELS[step.phase]:
        yield _kernel(step, net, name, kernel, count)
    yield step.gemm("gdn_out_proj_gemm", hidden, values // tp, count=count, quant=quant, quantized_input=True)
    yield from _after_attention(step, "gdn_ar", count)
    yield from _ffn(step, "gdn", count)


def _kernel(step: Step, net: DeltaNet, name: str, kernel: str, count: int) -> Measured:
    return Measured(
        name=step.named(name),
        count=float(count * step.factor),
        table="gdn",
        phase=step.phase,
        key=(
            ("kernel", kernel),
            ("phase", step.phase),
            ("d_model", step.model.hidden),
            ("k_heads", net.key_heads // step.split.tp),
            ("k_size", net.key_size),
            ("v_heads", net.value_heads // step.split.tp),
            ("v_size", net.value_size),
            ("d_conv", net.conv),
        ),
    )


def _attention(step: Step) -> Iterator[Operation]:
    """Yield full attention; queries come with a gate as wide as they are."""
    model, count = step.model, step.model.count("full")
    if not count:
        return
    width, quant = step.heads * model.head_size, step.part_format("mixer")
    yield step.norm("full_attn_norm", count=count)
    into = 2 * width + 2 * step.kv_heads * model.head_size
    yield step.gemm("qkv_gemm", into, model.hidden, count=count, quant=quant)
    yield step.attention(count=count, qk_norm=True)
    yield step.gemm("proj_gemm", model.hidden, width, count=count, quant=quant, quantized_input=True)
    yield from _after_attention(step, "full_ar", count)
    yield from _ffn(step, "full", count)


def _after_attention(step: Step, name: str, count: int) -> list[Operation]:
    """Return the all-reduce after attention; SGLang leaves it to the exchange before experts, if attention is split."""
    folded = step.backend == "sglang" and step.model.has_experts and step.split.dp > 1
    return [] if folded else step.all_reduce(name, count=count)


def _ffn(step: Step, prefix: str, count: int) -> Iterator[Operation]:
    model = step.model
    yield step.norm(f"{prefix}_ffn_norm", count=count)
    if model.has_experts:
        yield from _experts(step, prefix, count)
        return
    inter, both, quant = (
        model.inter // step.split.tp,
        2 * model.inter // step.split.tp,
        step.part_format("mlp"),
    )
    yield step.gemm(f"{prefix}_gate_ffn1_gemm", both, model.hidden, count=count, quant=quant)
    yield step.memory(f"{prefix}_act_gate", both, inter, count=count)
    yield step.gemm(
        f"{prefix}_ffn2_gemm", model.hidden, inter, count=count, quant=quant, quantized_input=True
    )
    yield from step.all_reduce(f"{prefix}_ffn_ar", count=count)


def _experts(step: Step, prefix: str, count: int) -> Iterator[Operation]:
    """Yield routed and shared experts: side by side where vLLM and SGLang generate."""
    sglang = step.backend == "sglang"
    sends = [] if sglang and step.split.dp == 1 else _exchange(step, prefix, count, before=True)
    router, compute = experts.router_and_experts(
        step, count=count, distribution=DISTRIBUTION, prefix=f"{prefix}_"
    )
    routes = [router] if step.model.experts >= experts.FEWEST_ROUTED else []
    returns = _exchange(step, prefix, count, before=False)
    alone = _shared(step, prefix, count) if step.model.shared_inter else []
    merge = [_merge(step, prefix, count)] if step.model.shared_inter else []
    if step.in_context:
        yield from (*routes, *sends, compute, *returns, *alone, *merge)
        return
    routed: list[Operation] = [*routes, compute] if sglang else [*routes, *sends, compute]
    yield from sends if sglang else ()
    if alone and step.backend in ("vllm", "sglang"):
        yield Overlap(name=step.named(f"{prefix}_moe_overlap"), first=tuple(routed), second=tuple(alone))
    else:
        yield from (*routed, *alone)
    yield from (*merge, *returns)


def _exchange(step: Step, prefix: str, count: int, *, before: bool) -> list[Operation]:
    name = f"{prefix}_moe_{'pre' if before else 'post'}_dispatch"
    return experts.exchange(step, name, count=count, hidden=step.model.hidden, before=before, summed=True)


def _shared(step: Step, prefix: str, count: int) -> list[Operation]:
    """Return the shared expert and its gate, which SGLang computes with the sum of both."""
    hidden, inter = step.model.hidden, step.model.shared_inter // step.split.tp
    both = 2 * step.model.shared_inter // step.split.tp
    kept = step.part_format("shared")
    branch: list[Operation] = [
        step.gemm(f"{prefix}_shared_gate_up_gemm", both, hidden, count=count, quant=kept),
        step.memory(f"{prefix}_shared_act_gate", both, inter, count=count),
        step.gemm(f"{prefix}_shared_down_gemm", hidden, inter, count=count, quant=kept, quantized_input=True),
    ]
    if step.backend == "sglang":
        return branch
    name = f"{prefix}_shared_expert_gate"
    gate = step.gemm(f"{name}_gemm", 1, hidden, count=count, quant="bfloat16", below_grid=True)
    return [gate, *branch, step.memory(f"{name}_mul", hidden, hidden, count=count)]


def _merge(step: Step, prefix: str, count: int) -> Operation:
    reads = 3 if step.backend == "sglang" else 2
    hidden = step.model.hidden
    return step.memory(f"{prefix}_shared_merge", reads * hidden, hidden, count=count)
