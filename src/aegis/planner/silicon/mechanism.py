"""Step times as measured deployments have them: a factor for each class of operations, and the host's time.

Latencies of single operations were measured alone, on an idle GPU. In a server they overlap, run in CUDA graphs or wait for the host. What
that comes to is fitted to the fit half of the measured deployments (`silicon.fit`): one factor for each engine, class of systems,
class of operations and phase, pulled to 1 where rows are few, and the host's ms for each engine and class of systems. All of
them are positive, so that a longer operation never makes a shorter step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
from msgspec import Struct

from aegis.planner.estimate.host import Host
from aegis.planner.operations import Kind, kind_of

if TYPE_CHECKING:
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.operations import Floats, Ints, Leaf, Performance, Query
    from aegis.planner.problem import Load
    from aegis.planner.systems import System

SystemClass: TypeAlias = Literal["hopper", "blackwell", "other"]
CLASSES: Final[tuple[SystemClass, ...]] = ("hopper", "blackwell", "other")
KINDS: Final[tuple[Kind, ...]] = ("gemm", "attention", "experts", "link", "memory")
_HOPPER, _BLACKWELL = 90, 100  # sm_version
_NINE_OF_TEN: Final = 1.645  # standard deviations to either side that hold 90 % of a normal distribution


class Mechanism(Struct, frozen=True, kw_only=True):
    """What was fitted for one engine on one class of systems."""

    prefill: dict[Kind, float]  # factors on operations over the tokens of prompts
    decode: dict[Kind, float]
    host: Host


def class_of(system: System) -> SystemClass:
    """Return the class of a system: what was measured in deployments, or another."""
    if system.sm_version == _HOPPER:
        return "hopper"
    return "blackwell" if system.sm_version >= _BLACKWELL else "other"


class AsMeasured:
    """A `Performance` whose operations take as long as they do in a server."""

    def __init__(self, performance: Performance, mechanism: Mechanism) -> None:
        self._performance = performance
        self._mechanism = mechanism

    @property
    def alone(self) -> Performance:
        """The same operations as they were measured alone."""
        return self._performance

    @property
    def system(self) -> System:
        """The hardware."""
        return self._performance.system

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of these figures."""
        return self._performance.notes

    def latency(self, operation: Leaf, at: Query) -> Floats:
        """Return ms of one occurrence, in the shape that the query broadcasts to.

        Raises:
            NoData: no figures for this operation.
        """
        factors = (
            self._mechanism.decode if operation.name.startswith("generation") else self._mechanism.prefill
        )
        return self._performance.latency(operation, at) * factors[kind_of(operation)]


def as_measured(worker: Worker, mechanism: Mechanism) -> Worker:
    """Return a worker whose steps take as long as they do in a server."""
    return worker.changed(performance=AsMeasured(worker.performance, mechanism), host=mechanism.host)


def share_of_prefill(worker: Worker, load: Load) -> float:
    """Return ln of what `as_measured` makes of the time of a prompt; 0 where it was not asked."""
    alone = _alone(worker)
    return float(np.log(worker.prefill(1, load.isl) / alone.prefill(1, load.isl))) if alone else 0.0


def share_of_decode(worker: Worker, load: Load, batch: Ints) -> Floats:
    """Return ln of what `as_measured` makes of a decode step, in the shape of `batch`; 0 where it was not asked."""
    alone, length = _alone(worker), load.isl + load.osl // 2 + 1
    if alone is None:
        return np.zeros(np.shape(batch))
    share: Floats = np.log(worker.decode(batch, length) / alone.decode(batch, length))
    return share


def spread_of_decode(host: Host, batch: Ints, steps: Floats) -> Floats:
    """Return the standard deviation of ln of decode steps that is owed to the host's.

    Args:
        host: of the worker.
        batch: running requests.
        steps: ms of a step of so many, in the shape of `batch`.
    """
    spread: Floats = host.spread * (host.step + host.request * batch) / steps
    return spread


def spread_of_tables(system: System) -> float:
    """Return the standard deviation of ln of all times of a system that is estimated; 0 where it has tables.

    Its `uncertainty` is a share that nine of ten cases are within.
    """
    return float(np.log1p(system.uncertainty)) / _NINE_OF_TEN if system.estimated else 0.0


def _alone(worker: Worker) -> Worker | None:
    performance = worker.performance
    if not isinstance(performance, AsMeasured):
        return None
    return worker.changed(performance=performance.alone, host=Host())
