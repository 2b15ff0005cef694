"""Models whose layers all route to experts: Mixtral, Qwen3-MoE, MiniMax-M2, gpt-oss, ..."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.models.families import dense, experts, wide

if TYPE_CHECKING:
    from aegis.planner.models.families.step import Step
    from aegis.planner.operations import Operation

DISTRIBUTION = "power_law_1.2"


def operations(step: Step) -> list[Operation]:
    """Return the operations of one step.

    The current rules leave the logits out of prefill; the correction `logits-in-prefill` puts them back.
    """
    model, guide = step.model, step.rules == "guide"
    layers = model.layers
    samples = guide or not step.in_context or "logits-in-prefill" in step.corrections
    return [
        *dense.windowed_attention(step),
        step.embedding(),
        *dense.attention_block(step),
        step.norm("add_norm_2", count=layers),
        *experts.shared(step, count=layers, inter=model.shared_inter),
        *_routed(step),
        *([step.logits()] if samples else []),
        *([] if guide else step.all_reduce("embedding_ar", count=1)),
        *step.send_on(),
    ]


def _routed(step: Step) -> list[Operation]:
    if step.transport:
        return wide.expert_block(step, distribution=DISTRIBUTION)
    counts = step.rules != "guide" or step.model.experts >= experts.FEWEST_ROUTED
    return experts.routed(step, count=step.model.layers, distribution=DISTRIBUTION, router=counts)
