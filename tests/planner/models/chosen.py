"""What is chosen for a model unless a user says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aegis.planner.models.quantize import explain_quantization
from aegis.planner.models.splits import default_lists, splits_of

if TYPE_CHECKING:
    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.problem import Parallel, Quantization


def default_quantization(model: ModelShape, **asked: Any) -> Quantization:
    return explain_quantization(model, **asked)[0]


def default_splits(model: ModelShape, **asked: Any) -> tuple[Parallel, ...]:
    backend, rules = asked["backend"], asked.get("rules", "current")
    lists = default_lists(model, **asked)
    return splits_of(lists, has_experts=model.has_experts, backend=backend, rules=rules)
