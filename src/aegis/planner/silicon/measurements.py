"""The measured deployments behind the predictions of a plan: asked by worker and load, answered once for each kind of question."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

from aegis.planner.estimate.worker import Left
from aegis.planner.silicon.kriging import Neighbours, Read, Table
from aegis.planner.silicon.mechanism import (
    share_of_decode,
    share_of_prefill,
    spread_of_decode,
    spread_of_tables,
)
from aegis.planner.silicon.places import at, place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike

    from aegis.planner.estimate.worker import Worker
    from aegis.planner.operations import Floats, Ints
    from aegis.planner.problem import Load, ServingMode
    from aegis.planner.silicon.fitted import Errors
    from aegis.planner.silicon.kriging import Matrix, Place, Residual

KINDS_KEPT: Final = 16  # of questions: each holds a megabyte, and the next system has its own
_STEPS: Final = 2 ** np.arange(12)  # requests of a group, or users, that corrections are read at


class Figure:
    """What is left over of one figure, TTFT or TPOT, with a site's own rows among the others."""

    def __init__(self, errors: Errors, site: Sequence[Residual] = ()) -> None:
        self._errors = errors
        self._shipped = len(errors.residuals)
        self._table = Table((*errors.residuals, *site))
        self._neighbours: dict[tuple[object, ...], Neighbours] = {}

    def read(self, place: Place, at: Matrix, share: Callable[[], ArrayLike]) -> Read:
        """Return what is expected of a deployment at loads (n, features) of the same lengths.

        `share` is that of the mechanism (`Residual`). Where a site has rows of the group its correction is taken in any case.
        """
        untaken = None
        if not self._table.of_its_group(place)[self._shipped :].any():
            untaken = self._errors.untaken(place, share, len(at))
        return untaken or self._corrected(place, at)

    def _corrected(self, place: Place, at: Matrix) -> Read:
        kernel = self._errors.kernels[place.mode]
        if not self._table.residuals:
            return Read(np.zeros(len(at)), np.full(len(at), kernel.unknown**0.5))
        key = (*self._table.kind(place).tolist(), *at[0, 1:3].tolist())
        if key not in self._neighbours:
            if len(self._neighbours) == KINDS_KEPT:
                del self._neighbours[next(iter(self._neighbours))]
            chosen = self._table.nearest(kernel, place, at[0])
            own = [each >= self._shipped for each in chosen]
            self._neighbours[key] = Neighbours(kernel, self._table, chosen, own)
        return self._neighbours[key].read(place, at)

    def of_its_kind(self, place: Place) -> int:
        """Return how many deployments of this model, system and engine were measured."""
        return self._table.of_its_kind(place) if self._table.residuals else 0


class Measurements:
    """What is left over of TTFT and TPOT."""

    def __init__(self, ttft: Figure, tpot: Figure) -> None:
        self.ttft, self.tpot = ttft, tpot
        self._read: dict[tuple[object, ...], _Ladder] = {}

    def aggregated(self, worker: Worker, load: Load, batch: Ints) -> tuple[Left, Left]:
        """Return what is left over of TTFT and TPOT at so many requests of an attention group."""
        groups = worker.split.dp * worker.split.pp
        return (
            self._at("agg", "ttft", worker, load, groups).at(batch),
            self._at("agg", "tpot", worker, load, groups).at(batch),
        )

    def decoding(self, worker: Worker, load: Load, batch: Ints) -> Left:
        """Return what is left over of the TPOT of a decode worker with so many requests of an attention group."""
        return self._at("disagg", "tpot", worker, load, worker.split.dp).at(batch)

    def prefilling(self, worker: Worker, load: Load, users: Floats) -> Left:
        """Return what is left over of the TTFT behind a prefill worker, for users of the whole deployment."""
        return self._at("disagg", "ttft", worker, load, 1).at(users)

    def _at(
        self, mode: ServingMode, name: Literal["ttft", "tpot"], worker: Worker, load: Load, groups: int
    ) -> _Ladder:
        """Return what is left over on the ladder, each step of which stands for `groups` users."""
        key = (mode, name, worker, load)
        if key not in self._read:
            figure = self.ttft if name == "ttft" else self.tpot
            here = place(mode, worker)
            share = (
                partial(share_of_prefill, worker, load)
                if name == "ttft"
                else partial(share_of_decode, worker, load, _STEPS)
            )
            read = figure.read(here, at(worker, load, _STEPS * groups), share)
            spread = np.hypot(read.spread, spread_of_tables(worker.performance.system))
            read = Read(read.mean, spread)
            if name == "tpot":
                steps = worker.decode(_STEPS, load.isl + load.osl // 2 + 1)
                spread = np.hypot(spread, spread_of_decode(worker.host, _STEPS, steps))
                read = _growing(Read(read.mean, spread), steps)
            self._read[key] = _Ladder(read, figure.of_its_kind(here))
        return self._read[key]


class _Ladder(NamedTuple):
    """What is left over at sizes that double, and how many deployments of the kind were measured."""

    read: Read
    measured: int

    def at(self, sizes: Ints | Floats) -> Left:
        """Return what is left over at other sizes: straight lines in the logarithm, the last ones beyond it."""
        where = np.log(np.maximum(np.asarray(sizes, dtype=np.float64), 1.0))
        steps = np.log(_STEPS)
        return Left(
            np.exp(np.interp(where, steps, self.read.mean)),
            np.interp(where, steps, self.read.spread),
            self.measured,
        )


def _growing(read: Read, steps: Floats) -> Read:
    """Return what is left over such that more requests never make a step shorter."""
    logarithms = np.log(steps)
    return read._replace(mean=np.maximum.accumulate(logarithms + read.mean) - logarithms)
