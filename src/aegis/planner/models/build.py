"""Build the operations of a model for one split: what one GPU of a worker computes in a step, and what it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.models.families import deepseek, dense, hybrid, moe, nas, nemotron_h, qwen35, sparse
from aegis.planner.models.families.step import Lanes, Step
from aegis.planner.models.graph import Graph
from aegis.planner.models.keep import embedding_weights, kv_groups, weights_of
from aegis.planner.models.limits import check_split, check_within_node
from aegis.planner.models.mtp import generation_factor
from aegis.planner.models.wide import transports_of
from aegis.planner.problem import Mtp

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.planner.estimator import Rules
    from aegis.planner.models.shapes import Family, ModelShape
    from aegis.planner.operations import Operation
    from aegis.planner.problem import Backend, Parallel, Quantization, WideExperts
    from aegis.planner.systems import System

OPERATIONS: dict[Family, Callable[[Step], list[Operation]]] = {
    "LLAMA": dense.operations,
    "GPT": dense.operations,
    "MOE": moe.operations,
    "DEEPSEEK": deepseek.operations,
    "KIMIK25": deepseek.operations,
    "DEEPSEEKV32": sparse.operations,
    "NEMOTRONNAS": nas.operations,
    "HYBRIDMOE": hybrid.hybrid_operations,
    "GEMMA4MIX": hybrid.gemma_operations,
    "QWEN35": qwen35.operations,
    "NEMOTRONH": nemotron_h.operations,
}


def build_graph(
    model: ModelShape,
    split: Parallel,
    quantization: Quantization,
    *,
    system: System,
    backend: Backend,
    rules: Rules = "current",
    mtp: Mtp | None = None,
    lanes: Lanes | None = None,
    corrections: frozenset[str] = frozenset(),
    wide: tuple[WideExperts, ...] = (),
    reach: bool = False,
) -> Graph:
    """Return what one GPU of one worker computes and keeps.

    Args:
        model: its shape.
        split: how the worker splits it.
        quantization: number formats.
        system: decides how experts exchange tokens (sm version, size of a node).
        backend: the engine; decides the same, and which all-reduces it does.
        rules: "guide" or "current" (planner.estimator).
        mtp: drafted tokens; None: none.
        lanes: kernel sources of attention; None: all together.
        corrections: names of planner.estimator; "logits-in-prefill" and "reach-past-tables" are looked at here.
        wide: sizes of groups of GPUs whose experts are reached by a measured transport.
        reach: experts may be on several nodes without one: the engine's collectives carry their tokens.

    Raises:
        SplitError: the model cannot be split in this way.
    """
    mtp = Mtp() if mtp is None else mtp
    check_split(model, split, quantization, backend=backend, rules=rules, mtp=mtp)
    transports = transports_of(split, wide, backend)
    if transports is None and rules == "current" and not reach:
        estimable = "reach-past-tables" in corrections
        check_within_node(split, system, hint="--database-mode HYBRID estimates it" if estimable else None)
    groups = kv_groups(model, split, quantization, rules)
    build = OPERATIONS[model.family]

    generation_count = generation_factor(model, mtp, rules)
    first = Step(
        phase="context",
        model=model,
        split=split,
        quantization=quantization,
        system=system,
        backend=backend,
        rules=rules,
        factor=1.0,
        lanes=Lanes() if lanes is None else lanes,
        cached_bytes=sum(group.bytes_per_token for group in groups),
        corrections=corrections,
        wide=transports,
    )
    context = build(first)
    weights = weights_of(context, rules)
    if any(each.name == first.embedding().name for each in context):
        weights += embedding_weights(model, split, rules)
    if model.indexer is not None:
        weights += sparse.attention_weights(first)
    return Graph(
        context=tuple(context),
        generation=tuple(build(first._replace(phase="generation", factor=generation_count))),
        weights=weights / split.pp,
        kv_groups=groups,
        layers=model.layers,
        family=model.family,
        attention_width=model.heads * model.head_size,
        hidden=model.hidden,
        experts=model.experts,
        topk=model.topk,
        wide=transports is not None,
    )
