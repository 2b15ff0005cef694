"""The Pareto frontier: configurations that no other one beats in both user speed and throughput."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.answer import Candidate
    from aegis.planner.operations import Floats, Ints


def frontier(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates that are not weakly dominated in (tokens/s/user, tokens/s/gpu), slowest user first.

    Of several that are alike in both, the first one stays.
    """
    user = np.array([each.tokens_per_s_user for each in candidates])
    gpu = np.array([each.tokens_per_s_gpu for each in candidates])
    return tuple(candidates[index] for index in front(user, gpu))


def front(first: Floats, second: Floats) -> Ints:
    """Return the indices of the points that are not weakly dominated (more is better), by rising `first`."""
    order = np.lexsort((np.arange(len(first)), -second, -first))
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(second[order])[:-1]))
    kept: Ints = order[second[order] > best_before][::-1]
    return kept
