"""Predictions of measured deployments: the same question that was put to the machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from aegis.errors import AegisError
from aegis.planner.answer import spread_of_sum
from aegis.planner.estimate.aggregated import rates
from aegis.planner.estimator import PLAIN
from aegis.planner.models.resolve import find_model
from aegis.planner.problem import Load, Tuning
from aegis.planner.silicon.fitted import fitted
from aegis.planner.silicon.measurements import Figure
from aegis.planner.silicon.mechanism import (
    as_measured,
    class_of,
    share_of_decode,
    share_of_prefill,
    spread_of_decode,
)
from aegis.planner.silicon.places import at, place
from aegis.planner.single import Asked, worker_of
from aegis.planner.task import Formats, WorkerQuestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike

    from aegis.planner.estimate.worker import Worker
    from aegis.planner.problem import Parallel
    from aegis.planner.silicon.deployments import Deployment
    from aegis.planner.silicon.fitted import Fitted
    from aegis.planner.silicon.kriging import Matrix, Place, Residual

WORKERS_KEPT: Final = 64  # rows of a table stand by deployments; thousands of workers would take gigabytes
_START = 0.1  # of the requests of a measurement are sent at its start, all users at once
_MXFP4 = "mxfp4"


class Prediction(NamedTuple):
    """What is predicted of a deployment; ms. The spreads are standard deviations of the logarithm."""

    ttft: float
    tpot: float
    ttft_spread: float = 0.0
    tpot_spread: float = 0.0
    spread: float = 0.0  # of the throughput
    measured: int = 0  # deployments of this model, system and engine behind it


class Seat(NamedTuple):
    """Where a deployment stands among the measured ones, for one figure."""

    place: Place
    at: Matrix  # (1, features)
    share: Callable[[], ArrayLike]  # of the mechanism (`Residual`)
    spread: float = 0.0  # of the mechanism itself: standard deviation of its logarithm


class Placed(NamedTuple):
    """A prediction without what is left over, and where that is to be read."""

    ttft: float
    tpot: float
    first: Seat  # of the TTFT
    further: Seat  # of the TPOT


@dataclass
class Workers:
    """The workers of deployments, the last of which are kept."""

    known: Fitted | None = None  # whose mechanism their steps follow
    _built: dict[tuple[object, ...], Worker | AegisError] = field(default_factory=dict)

    def of(self, row: Deployment, split: Parallel) -> Worker:
        """Return a worker of a deployment.

        Raises:
            AegisError: the model cannot be split so, or there are no figures.
        """
        key = (row.model, row.system, row.backend, row.version, row.gemm, row.moe, split, row.isl + row.osl)
        if key not in self._built:
            if len(self._built) == WORKERS_KEPT:
                del self._built[next(iter(self._built))]
            try:
                self._built[key] = self._worker(row, split)
            except AegisError as error:
                self._built[key] = error
        found = self._built[key]
        if isinstance(found, AegisError):
            raise found
        return found

    def _worker(self, row: Deployment, split: Parallel) -> Worker:
        worker = worker_of(self._asked(row, split))
        if self.known is None:
            return worker
        kind = class_of(worker.performance.system)
        return as_measured(worker, self.known.mechanism(worker.backend, kind, row.version))

    def _asked(self, row: Deployment, split: Parallel) -> Asked:
        # A checkpoint that was published in four bits of its own is run in them, whatever a table calls them.
        own = find_model(row.model).checkpoint.algorithm == _MXFP4
        formats = Formats() if own else Formats(gemm=row.gemm or None, moe=row.moe or None)
        return Asked(
            worker=WorkerQuestion(
                model=row.model, system=row.system, backends=(row.backend,), formats=formats
            ),
            split=split,
            load=Load(isl=row.isl, osl=row.osl),
            tuning=Tuning(),
            estimator=PLAIN,
            database_mode="HYBRID",
        )


def placed(row: Deployment, workers: Workers) -> Placed:
    """Return what the mechanism alone predicts of a deployment.

    Raises:
        AegisError: the model cannot be split so, or there are no figures.
    """
    load = Load(isl=row.isl, osl=row.osl)
    worker = workers.of(row, row.split)
    if row.prefill is None:
        batch = batch_of(row)
        found = rates(worker, load, batch, load.isl)
        here, loads = place("agg", worker, version=row.version), at(worker, load, row.concurrency)
        return Placed(
            float(found.ttft[0]),
            float(found.tpot[0]),
            Seat(here, loads, partial(share_of_prefill, worker, load)),
            _further(here, loads, worker, load, batch),
        )
    before = workers.of(row, row.prefill)
    tpot = float(worker.decode(batch_of(row), load.isl + load.osl // 2 + 1))
    known = row.decode_workers > 0
    users = row.concurrency / (row.decode_workers or 1)
    return Placed(
        float(first_token(row, before, tpot)),
        tpot,
        Seat(
            place("disagg", before, version=row.version, known=known),
            at(before, load, row.concurrency),
            partial(share_of_prefill, before, load),
        ),
        _further(
            place("disagg", worker, version=row.version, known=known),
            at(worker, load, users),
            worker,
            load,
            batch_of(row),
        ),
    )


def _further(here: Place, loads: Matrix, worker: Worker, load: Load, batch: int) -> Seat:
    requests = np.array([batch])
    steps = worker.decode(requests, load.isl + load.osl // 2 + 1)
    spread = float(spread_of_decode(worker.host, requests, steps)[0])
    return Seat(here, loads, partial(share_of_decode, worker, load, requests), spread)


def batch_of(row: Deployment) -> int:
    """Return the requests of an attention group of a worker that decodes; workers that are not told count as one."""
    workers = (row.decode_workers or 1) if row.prefill is not None else row.split.pp
    return max(-(-row.concurrency // (row.split.dp * workers)), 1)


def first_token(row: Deployment, worker: Worker, tpot: float) -> float:
    """Return ms to the first token of disaggregated serving, for users who ask again as soon as they have their answer.

    Where prompts come faster than the prefill workers read them, the others wait (Little's law). One request in ten belongs to
    the start, when all ask at once.
    """
    load = Load(isl=row.isl, osl=row.osl)
    reading = float(worker.prefill(1, row.isl))
    lanes = (row.prefill_workers or 1) * worker.split.dp
    turn = row.concurrency * reading / lanes  # in which each user has one prompt read
    steady = max(reading, turn - tpot * (row.osl - 1))
    return (
        (1 - _START) * steady + _START * (turn + reading) / 2 + worker.kv_transfer(load) + worker.host.first
    )


def predict(
    rows: Iterable[Deployment],
    *,
    known: Fitted | None = None,
    site_ttft: Sequence[Residual] = (),
    site_tpot: Sequence[Residual] = (),
    corrected: bool = True,
) -> Iterator[Prediction | str]:
    """Yield a prediction of each row, or why there is none.

    Args:
        rows: what to predict; their measured values are not looked at.
        known: what was fitted; default: what is carried along.
        site_ttft: a site's own rows, as `left_over` returns them.
        site_tpot: the same, of TPOT.
        corrected: by the mechanism and what it leaves over; else the uncorrected prediction.
    """
    known = known or fitted()
    workers = Workers(known if corrected else None)
    first_tokens, further_tokens = Figure(known.ttft, site_ttft), Figure(known.tpot, site_tpot)
    for row in rows:
        try:
            plain = placed(row, workers)
        except AegisError as error:
            yield error.message
            continue
        if not corrected:
            yield Prediction(plain.ttft, plain.tpot)
            continue
        first = first_tokens.read(*plain.first[:3])
        further = further_tokens.read(*plain.further[:3])
        ttft = plain.ttft * float(np.exp(first.mean[0]))
        tpot = plain.tpot * float(np.exp(further.mean[0]))
        spreads = float(first.spread[0]), float(np.hypot(further.spread[0], plain.further.spread))
        yield Prediction(
            ttft,
            tpot,
            *spreads,
            spread_of_sum(ttft, tpot * (row.osl - 1), *spreads),
            further_tokens.of_its_kind(plain.further.place),
        )
