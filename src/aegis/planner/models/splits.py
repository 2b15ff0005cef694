"""Which splits of a model are weighed: lists of sizes, and all combinations of them that make sense."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from aegis.planner.models.limits import CONTEXT_PARALLEL_FAMILIES
from aegis.planner.problem import Parallel

if TYPE_CHECKING:
    from aegis.planner.answer import Role
    from aegis.planner.estimator import Rules
    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.problem import Backend
    from aegis.planner.systems import System

Sizes: TypeAlias = "tuple[int, ...]"

ONE: Sizes = (1,)
TO_8: Sizes = (1, 2, 4, 8)
TO_16: Sizes = (*TO_8, 16)
TO_32: Sizes = (*TO_16, 32)
TO_64: Sizes = (*TO_32, 64)

BLACKWELL = 100
LINKED_NODES = ("gb200", "gb300")  # one NVLink domain over several nodes: dense models are split further
DEEP_PIPELINE = 16  # GPUs from which sparse attention on Blackwell is tried with two stages


class Lists(NamedTuple):
    """Sizes of each kind; `gpus` are those of one worker."""

    gpus: Sizes
    tp: Sizes
    pp: Sizes = ONE
    dp: Sizes = ONE
    moe_tp: Sizes = ONE
    moe_ep: Sizes = ONE
    cp: Sizes = ONE


def default_lists(
    model: ModelShape,
    *,
    system: System,
    backend: Backend,
    rules: Rules = "current",
    role: Role = "agg",
    total_gpus: int,
    wide_ep: bool = False,
    measured: Sizes = (),
) -> Lists:
    """Return the sizes that are weighed unless said; a worker is no larger than `total_gpus`.

    Args:
        model: with experts, more ways are there.
        system: Blackwell systems of several linked nodes are split further.
        backend: the engine; not all split in all ways.
        rules: the guide's lists are shorter.
        role: of the worker: "agg", "prefill" or "decode".
        total_gpus: of all workers.
        wide_ep: experts over several nodes, too.
        measured: sizes of these that were; vLLM is tried with no others.
    """
    if rules == "guide":
        lists = _guide_lists(model, system, role, wide_ep=wide_ep)
    else:
        lists = _current_lists(model, system, backend, role)
        if model.has_experts and (wide_ep or measured):
            lists = _merge(lists, _wide_lists(backend, role, measured))
        if model.family == "DEEPSEEKV32" and system.sm_version >= BLACKWELL and total_gpus >= DEEP_PIPELINE:
            lists = _merge(lists, Lists((16,), (8,), pp=(2,), dp=ONE, moe_tp=TO_8, moe_ep=TO_8))
    return lists._replace(gpus=tuple(each for each in lists.gpus if each <= total_gpus))


def splits_of(
    lists: Lists, *, has_experts: bool, backend: Backend, rules: Rules = "current"
) -> tuple[Parallel, ...]:
    """Return all combinations of these sizes that a worker can have, in the order of the lists.

    Models without experts know no attention data parallelism: `dp` and the lists of experts are not looked at.
    """
    gpus = set(lists.gpus)
    if not has_experts:
        dense = (Parallel(tp=tp, pp=pp, cp=cp) for tp, pp, cp in product(lists.tp, lists.pp, lists.cp))
        return tuple(each for each in dense if each.gpus in gpus and _cp_alone(each))
    found = (
        Parallel(tp=tp, pp=pp, dp=dp, moe_tp=moe_tp, moe_ep=moe_ep, cp=cp)
        for tp, pp, dp, moe_tp, moe_ep, cp in product(*lists[1:])
    )
    return tuple(
        each
        for each in found
        if each.gpus in gpus and objection(each, has_experts=True, backend=backend, rules=rules) is None
    )


def objection(split: Parallel, *, has_experts: bool, backend: Backend, rules: Rules) -> str | None:
    """Return why no worker can be split so, None if one can."""
    if not _cp_alone(split):
        return "cp goes with tp 1 and dp 1 only"
    if has_experts:
        return _objection_of_experts(split, backend, rules)
    sizes = (split.dp, split.moe_tp, split.moe_ep)
    return None if sizes == (1, 1, 1) else "dp, moe_tp and moe_ep are for models with experts"


def _objection_of_experts(split: Parallel, backend: Backend, rules: Rules) -> str | None:
    if split.tp * split.dp * split.cp != split.moe_tp * split.moe_ep:
        return "attention and experts take the same GPUs: tp x dp x cp is moe_tp x moe_ep"
    if backend == "trtllm" and min(split.tp, split.dp) > 1:
        return "trtllm splits attention by tp or by dp, not by both"
    if backend == "vllm" and min(split.moe_tp, split.moe_ep) > 1:
        return "vllm splits experts by moe_tp or by moe_ep, not by both"
    if backend == "sglang" and rules == "guide" and split.moe_tp > 1:
        return "the guide's rules know no moe_tp of sglang"
    return None


def _cp_alone(split: Parallel) -> bool:
    return split.cp == 1 or (split.tp == 1 and split.dp == 1)


def _guide_lists(model: ModelShape, system: System, role: Role, *, wide_ep: bool) -> Lists:
    if not model.has_experts:
        sizes = TO_16 if system.name.startswith("gb200") else TO_8
        return Lists(sizes, sizes)
    if not wide_ep:
        return Lists(TO_8, TO_8, dp=ONE if role == "prefill" else TO_8, moe_ep=TO_8)
    match role:
        case "prefill":
            return Lists(TO_16, TO_8, dp=(1, 2, 4), moe_ep=TO_16)
        case "decode":
            return Lists(TO_64, TO_8, dp=TO_64, moe_ep=TO_64)
        case _:
            return Lists(TO_32, TO_8, dp=TO_32, moe_ep=TO_32)


def _current_lists(model: ModelShape, system: System, backend: Backend, role: Role) -> Lists:
    gathers = backend == "sglang" and role != "decode" and model.family in CONTEXT_PARALLEL_FAMILIES
    cp = TO_8 if gathers else ONE
    if not model.has_experts:
        sizes = TO_16 if system.name in LINKED_NODES else TO_8
        return Lists(sizes, sizes, cp=cp)
    return Lists(TO_16, TO_16, dp=TO_16, moe_tp=TO_16, moe_ep=TO_16, cp=cp)


def _wide_lists(backend: Backend, role: Role, measured: Sizes) -> Lists:
    most = TO_32 if role == "prefill" else TO_64
    if backend == "trtllm":
        wide = tuple(each for each in most if each >= (2 if role == "agg" else 4))
        return Lists(wide, TO_8, dp=wide, moe_ep=wide)
    wide = tuple(each for each in most if each >= 8)  # noqa: PLR2004 - one node
    if backend == "vllm":
        wide = measured or wide
        return Lists(wide, ONE, dp=wide, moe_ep=wide)
    return Lists(wide, TO_8, dp=most, moe_ep=wide)


def _merge(first: Lists, second: Lists) -> Lists:
    return Lists(*(tuple(sorted({*one, *other})) for one, other in zip(first, second, strict=True)))
