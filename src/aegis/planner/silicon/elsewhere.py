"""What rows say of a system that nobody measured: how sure it is, and of which engines it is nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec.structs import replace

from aegis.planner.silicon.variances import factor_that_holds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.silicon.kriging import Kernel


class Elsewhere(NamedTuple):
    """A row as rows on other systems predict it, where the mechanism was fitted to those alone."""

    engine: str
    said: float  # ln(measured / predicted), as the others have it
    left: float  # as it was
    spread: float  # standard deviation that `said` comes with


def of_new_systems(kernel: Kernel, rows: Sequence[Elsewhere]) -> Kernel:
    """Return the variances of a mode with what holds for systems that nobody measured.

    Engines whose rows would be nearer without a correction, by the mean of |ln(measured / predicted)|, get none there. Spreads are
    multiplied such that 80 % of the rows of all engines together lie within 80 %.
    """
    apart = tuple(sorted({each.engine for each in rows if _worse(rows, each.engine)}))
    taken = (each._replace(said=0.0) if each.engine in apart else each for each in rows)
    sizes = [abs(each.said - each.left) / each.spread for each in taken]
    return replace(kernel, apart=apart, further=factor_that_holds(sizes))


def _worse(rows: Sequence[Elsewhere], engine: str) -> bool:
    said, left = np.array([(each.said, each.left) for each in rows if each.engine == engine]).T
    return bool(np.abs(said - left).mean() > np.abs(left).mean())
