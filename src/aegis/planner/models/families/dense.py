"""Dense models: Llama 2 and 3, Qwen2.5, Qwen3, Mistral, ...; without a gate: GPT."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aegis.planner.models.families.step import Step
    from aegis.planner.operations import Operation


def operations(step: Step) -> list[Operation]:
    """Return the operations of one step."""
    model, split = step.model, step.split
    layers, current = model.layers, step.rules == "current"
    return [
        *windowed_attention(step),
        step.embedding(),
        *attention_block(step),
        step.norm("add_norm_2", count=layers),
        *ffn(step, model.inter // split.tp),
        step.logits(),
        *(step.all_reduce("embedding_ar", count=1) if current else []),
        *step.all_reduce("ar_1", count=layers),
        *step.all_reduce("ar_2", count=layers),
        *step.send_on(),
    ]


def windowed_attention(step: Step) -> list[Operation]:
    """Return the attention of the layers that attend to a window only."""
    window, layers = step.model.window, windowed_layers(step)
    return [] if window is None or not layers else [step.attention(count=layers, window=window.size)]


def attention_block(step: Step) -> list[Operation]:
    """Return the first half of all layers: norm, projections, and attention to all tokens where they have it."""
    model, tp = step.model, step.split.tp
    layers = model.layers
    width = model.heads * model.head_size // tp
    unlimited = layers - windowed_layers(step)
    return [
        step.norm("add_norm_1", count=layers),
        step.gemm("qkv_gemm", width + 2 * model.head_size * step.kv_heads, model.hidden, count=layers),
        *([step.attention(count=unlimited)] if unlimited else []),
        *step.gather_cache(),
        step.gemm("proj_gemm", model.hidden, width, count=layers, quantized_input=True),
    ]


def ffn(step: Step, inter: int) -> list[Operation]:
    """Return the second half of all layers, `inter` wide on this GPU."""
    model = step.model
    layers, hidden = model.layers, model.hidden
    down = step.gemm("ffn2_gemm", hidden, inter, count=layers, quantized_input=True)
    if model.family == "GPT":
        return [
            step.gemm("ffn1_gemm", inter, hidden, count=layers),
            step.memory("act", inter, inter, count=layers),
            down,
        ]
    both = 2 * model.inter // step.split.tp
    return [
        step.gemm("gate_ffn1_gemm", both, hidden, count=layers),
        step.memory("act_gate", both, inter, count=layers),
        down,
    ]


def windowed_layers(step: Step) -> int:
    """Return how many layers attend to a window only."""
    model = step.model
    if model.window is None:
        return 0
    return model.count("window") if model.kinds else model.layers
