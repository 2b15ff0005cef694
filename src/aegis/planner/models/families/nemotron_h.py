"""Nemotron-H and Nemotron-3: layers of Mamba2, attention, experts or a dense half, each with its own norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.models.families import experts
from aegis.planner.operations import Measured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.models.families.step import Step
    from aegis.planner.models.shapes import Mamba
    from aegis.planner.operations import Operation

DISTRIBUTION = "power_law_1.01"
KERNELS = {
    "context": ("causal_conv1d_fn", "mamba_chunk_scan_combined"),
    "generation": ("causal_conv1d_update", "selective_state_update"),
}


def operations(step: Step) -> list[Operation]:
    """Return the operations of one step."""
    return [
        step.embedding(),
        *_mamba(step),
        *_attention(step),
        *_experts(step),
        *_dense(step),
        *step.send_on(),
        step.logits(),
    ]


def _mamba(step: Step) -> Iterator[Operation]:
    count, sizes = step.model.count("mamba"), step.model.mamba
    if not count or sizes is None:
        return
    tp, hidden = step.split.tp, step.model.hidden
    heads = sizes.heads // tp
    inner = heads * sizes.head_size
    into = 2 * inner + 2 * max(sizes.groups // tp, 1) * sizes.state + heads
    conv, scan = KERNELS[step.phase]
    yield step.norm("mamba_norm", count=count)
    yield step.gemm("mamba_in_proj_gemm", into, hidden, count=count)
    yield _kernel(step, sizes, "mamba_conv1d", conv, count)
    yield _kernel(step, sizes, "mamba_ssm", scan, count)
    yield step.gemm("mamba_out_proj_gemm", hidden, inner, count=count)
    yield from step.all_reduce("mamba_ar", count=count)


def _kernel(step: Step, sizes: Mamba, name: str, kernel: str, count: int) -> Measured:
    """Return a kernel by the sizes of the whole model: it was measured unsplit."""
    return Measured(
        name=step.named(name),
        count=float(count * step.factor),
        table="mamba2",
        phase=step.phase,
        key=(
            ("kernel", kernel),
            ("phase", step.phase),
            ("d_model", step.model.hidden),
            ("d_state", sizes.state),
            ("d_conv", sizes.conv),
            ("heads", sizes.heads),
            ("head_size", sizes.head_size),
            ("groups", sizes.groups),
            ("chunk", sizes.chunk),
        ),
    )


def _attention(step: Step) -> Iterator[Operation]:
    model, tp, count = step.model, step.split.tp, step.model.count("full")
    if not count:
        return
    width = model.heads * model.head_size // tp
    yield step.norm("attn_norm", count=count)
    yield step.gemm("qkv_gemm", width + 2 * model.head_size * step.kv_heads, model.hidden, count=count)
    yield step.attention(count=count)
    yield step.gemm("proj_gemm", model.hidden, width, count=count, quantized_input=True)
    yield from step.all_reduce("attn_ar", count=count)


def _experts(step: Step) -> Iterator[Operation]:
    """Yield expert layers; routed experts may work on a compressed hidden state."""
    model, tp, count = step.model, step.split.tp, step.model.count(ffn="moe")
    if not count:
        return
    hidden, latent, shared = model.hidden, model.latent_inter, model.shared_inter // tp
    yield step.norm("moe_norm", count=count)
    yield step.gemm("shared_up_gemm", shared, hidden, count=count)
    yield step.memory("shared_relu2", shared, shared, count=count)
    yield step.gemm("shared_down_gemm", hidden, shared, count=count, quantized_input=True)
    yield step.gemm("router_gemm", model.experts, hidden, count=count, quant="bfloat16")
    if latent:
        yield step.gemm("fc1_latent_proj_gemm", latent // tp, hidden, count=count)
    yield from experts.routed(
        step, count=count, distribution=DISTRIBUTION, hidden=latent or hidden, gated=False, router=False
    )
    if latent:
        yield step.gemm("fc2_latent_proj_gemm", hidden, latent // tp, count=count, quantized_input=True)
    yield from step.all_reduce("moe_ar", count=count)


def _dense(step: Step) -> Iterator[Operation]:
    model, count = step.model, step.model.count(ffn="dense")
    if not count:
        return
    inter = model.inter // step.split.tp
    yield step.norm("mlp_norm", count=count)
    yield step.gemm("mlp_up_gemm", inter, model.hidden, count=count)
    yield step.memory("mlp_relu2", inter, inter, count=count)
    yield step.gemm("mlp_down_gemm", model.hidden, inter, count=count)
    yield from step.all_reduce("mlp_ar", count=count)
