"""Splits that a model, an engine or the rules do not allow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from aegis.planner.estimator import Rules
    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.problem import Backend, Mtp, Parallel, Quantization
    from aegis.planner.systems import System

# The guide's rules know no attention of fewer heads on a GPU, and no wider experts.
FEWEST_HEADS = 4
WIDEST_EXPERTS = 256

CONTEXT_PARALLEL_FAMILIES = frozenset(
    {
        "LLAMA",
        "GPT",
        "MOE",
        "DEEPSEEK",
        "KIMIK25",
        "HYBRIDMOE",
        "GEMMA4MIX",
    }  # sparse attention was not measured so
)
WITHOUT_MTP = frozenset({"GPT", "NEMOTRONNAS"})
MTP_FAMILIES = frozenset({"DEEPSEEK"})  # that the guide's rules draft tokens for


class SplitError(ConfigError):
    """A model cannot be split in this way; a search leaves the split out."""


def check_split(
    model: ModelShape,
    split: Parallel,
    quantization: Quantization,
    *,
    backend: Backend,
    rules: Rules,
    mtp: Mtp,
) -> None:
    """Check that a model can be split in this way.

    Raises:
        SplitError: it cannot, with the arithmetic.
    """
    smallest = min(split.tp, split.pp, split.dp, split.moe_tp, split.moe_ep, split.cp)
    if smallest < 1:
        raise SplitError(f"a split of {smallest} is none: all parts are at least 1")
    if model.heads % split.tp:
        raise SplitError(f"{model.heads} attention heads of {model.name} cannot be divided by tp {split.tp}")
    if rules == "guide":
        _check_guide(model, split, mtp)
    if mtp.drafted and model.family in WITHOUT_MTP:
        raise SplitError(f"{model.name} does not draft tokens")
    if split.cp > 1:
        _check_context_parallel(model, split, backend)
    if model.has_experts:
        _check_experts(model, split, "" if rules == "guide" else quantization.moe)


def check_within_node(split: Parallel, system: System, *, hint: str | None = None) -> None:
    """Check that experts are not spread over more than a node: only measured transports reach further.

    Raises:
        SplitError: they are; with the hint.
    """
    if split.moe_ep > system.gpus_per_node and not system.estimated:
        raise SplitError(
            f"experts on {split.moe_ep} GPUs are on several nodes of {system.gpus_per_node}: "
            f"no transport of their tokens was measured on {system.name}",
            hint=hint,
        )


def _check_guide(model: ModelShape, split: Parallel, mtp: Mtp) -> None:
    if model.heads // split.tp < FEWEST_HEADS:
        raise SplitError(
            f"tp {split.tp} leaves {model.heads // split.tp} of {model.heads} heads on a GPU; "
            f"the guide's rules need {FEWEST_HEADS}"
        )
    if split.tp * split.dp > WIDEST_EXPERTS:
        raise SplitError(f"tp {split.tp} x dp {split.dp} is more than {WIDEST_EXPERTS}")
    if mtp.drafted and model.family not in MTP_FAMILIES:
        raise SplitError(f"the guide's rules draft tokens for DeepSeek-V3 only, not for {model.name}")


def _check_context_parallel(model: ModelShape, split: Parallel, backend: Backend) -> None:
    if backend != "sglang" or model.family not in CONTEXT_PARALLEL_FAMILIES:
        raise SplitError(f"context parallelism of {model.name} is not known for {backend}")
    if split.tp != 1 or split.dp != 1:
        raise SplitError(f"cp {split.cp} goes with tp 1 and dp 1, not with tp {split.tp} and dp {split.dp}")


def _check_experts(model: ModelShape, split: Parallel, stored: str) -> None:
    width, experts_width = split.tp * split.dp * split.cp, split.moe_tp * split.moe_ep
    if width != experts_width:
        raise SplitError(
            f"tp {split.tp} x dp {split.dp} x cp {split.cp} = {width} GPUs for attention, "
            f"but moe_tp {split.moe_tp} x moe_ep {split.moe_ep} = {experts_width} for experts"
        )
    if model.experts % split.moe_ep:
        raise SplitError(
            f"{model.experts} experts of {model.name} cannot be divided by moe_ep {split.moe_ep}"
        )
    if model.family in ("MOE", "HYBRIDMOE") and stored == "fp8_block":
        part, block = model.moe_inter // split.moe_tp, model.checkpoint.block
        if part % block:
            raise SplitError(
                f"experts of {model.moe_inter} in {split.moe_tp} parts are {part} wide, no multiple of the {block} "
                f"that one scale of fp8_block stands for"
            )
