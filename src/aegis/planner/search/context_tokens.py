"""Which sizes of a step's chunk of prompt tokens an aggregated sweep tries (planner-model, section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.arrays import distinct

if TYPE_CHECKING:
    from aegis.planner.estimator import Rules
    from aegis.planner.operations import Ints

_FINE = 512  # tokens from one size to the next
_FINE_UNTIL = 8192
_COARSE_STEPS, _COARSE = 8, 1024


def context_tokens(isl: int, *, rules: Rules, chunked: bool) -> Ints:
    """Return sizes in tokens, ascending.

    Where prompts are not cut (`chunked` is false, current rules) sizes grow by whole prompts. Under the guide's rules
    they are always cut.
    """
    most = max(_FINE_UNTIL, 2 * isl)
    fine, coarse = _FINE, max(_COARSE, most // _COARSE_STEPS)
    if not chunked and rules == "current":
        fine, coarse = max(isl, fine), -(-max(coarse, fine, isl) // isl) * isl
    first = fine * np.arange(1, -(-_FINE_UNTIL // fine) + 1)
    then = np.arange(first[-1] + coarse, most + 1, coarse)
    sizes: Ints = distinct(np.concatenate([first, then, [isl, 2 * isl]]))
    return sizes[sizes <= most]
