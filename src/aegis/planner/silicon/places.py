"""Where a worker stands among measured deployments: what it has in common with others, and its load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.silicon.kriging import Place
from aegis.planner.silicon.mechanism import class_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from aegis.planner.estimate.worker import Worker
    from aegis.planner.problem import Load, ServingMode
    from aegis.planner.silicon.kriging import Matrix


def place(mode: ServingMode, worker: Worker, *, known: bool = True, version: str | None = None) -> Place:
    """Return the place of a worker; `known` is false where it is not told how many such workers there were."""
    system = worker.performance.system
    shape, split = worker.graph, worker.split
    sizes = (split.tp, split.pp, split.dp, split.moe_tp, split.moe_ep, split.cp)
    return Place(
        mode=mode if known else f"{mode}, workers not told",
        backend=worker.backend,
        kind=class_of(system),
        system=system.name,
        model=f"{shape.family} {shape.layers} {shape.hidden} {shape.experts}",
        formats=f"{worker.quantization.gemm} {worker.quantization.moe}",
        split=" ".join(map(str, sizes)),
        version=worker.version if version is None else version,
    )


def at(worker: Worker, load: Load, users: ArrayLike) -> Matrix:
    """Return the logarithms that loads are compared by, (users, 5)."""
    columns = np.broadcast_arrays(
        np.maximum(np.asarray(users, dtype=np.float64), 1.0),
        load.isl,
        load.osl,
        worker.split.gpus,
        worker.split.dp,
    )
    logarithms: Matrix = np.log(np.stack([np.ravel(column).astype(np.float64) for column in columns], axis=1))
    return logarithms
