"""Operations and their chains: how often each occurs, which run at the same time, which stand in for others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.operations import Fallback, NoData, Overlap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis.planner.operations import Floats, Operation, Performance, Query


def evaluate(operation: Operation, performance: Performance, at: Query) -> Floats:
    """Return ms of all occurrences of an operation in a step, in the shape that the query broadcasts to.

    Raises:
        NoData: the tables have no figures for it, nor for what may stand in for it.
    """
    match operation:
        case Overlap():
            chains = (total(chain, performance, at) for chain in (operation.first, operation.second))
            return operation.count * np.maximum(*chains)
        case Fallback():
            try:
                return operation.count * total(operation.primary, performance, at)
            except NoData:
                return operation.count * total(operation.otherwise, performance, at)
        case _:
            return operation.count * performance.latency(operation, at)


def total(operations: Iterable[Operation], performance: Performance, at: Query) -> Floats:
    """Return ms of operations that run one after the other.

    Raises:
        NoData: one of them has no figures.
    """
    result = np.zeros(np.broadcast_shapes(*(axis.shape for axis in at)))
    for each in operations:
        result = result + evaluate(each, performance, at)
    return result
