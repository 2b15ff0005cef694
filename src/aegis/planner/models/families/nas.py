"""Nemotron found by architecture search: blocks with their own number of KV heads and width, or without a half."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aegis.planner.models.families.step import Step
    from aegis.planner.models.shapes import Block
    from aegis.planner.operations import Operation

WIDTH_STEP = 256  # widths are rounded up to it


def operations(step: Step) -> list[Operation]:
    """Return the operations of one step."""
    return [
        step.embedding(),
        *(each for block in step.model.blocks for each in _block(step, block)),
        *step.send_on(),
        step.logits(),
    ]


def _block(step: Step, block: Block) -> list[Operation]:
    model, tp, count = step.model, step.split.tp, block.count
    hidden = model.hidden
    found: list[Operation] = []
    if block.heads_per_group is not None:
        kv_heads = -(-(model.heads // block.heads_per_group) // tp)
        width = model.heads * model.head_size // tp
        found += [
            step.norm("add_norm_1", count=count),
            step.gemm("qkv_gemm", width + 2 * model.head_size * kv_heads, hidden, count=count),
            step.attention(count=count, kv_heads=kv_heads),
            step.gemm("proj_gemm", hidden, width, count=count),
            *step.all_reduce("ar_1", count=count),
        ]
    if block.ffn_multiple is not None:
        inter = block_width(block.ffn_multiple, hidden)
        both = 2 * inter // tp
        found += [
            step.norm("add_norm_2", count=count),
            step.gemm("gate_ffn1_gemm", both, hidden, count=count),
            step.memory("act_gate", both, inter // tp, count=count),
            step.gemm("ffn2_gemm", hidden, inter // tp, count=count),
            *step.all_reduce("ar_2", count=count),
        ]
    return found


def block_width(multiple: float, hidden: int) -> int:
    """Return the width of a gated block: two thirds of a multiple of the hidden size, rounded up."""
    return -(-int(2 * multiple * hidden / 3) // WIDTH_STEP) * WIDTH_STEP
