"""Workers of real models on the tables that are shipped."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from aegis.planner.estimate.worker import Worker
from aegis.planner.estimator import AIC_012, Estimator
from aegis.planner.lanes import lanes_of
from aegis.planner.models.build import build_graph
from aegis.planner.models.resolve import find_model
from aegis.planner.perf.measured import Measured
from aegis.planner.problem import Mtp, Parallel, Quantization
from aegis.planner.systems import load_system
from aegis.planner.tables.store import StoredTables, open_tables

if TYPE_CHECKING:
    from aegis.planner.problem import Backend

NO_DRAFTS = Mtp()


@cache
def _measured(system: str, backend: Backend, version: str | None, *, per_token: bool) -> Measured:
    return Measured(load_system(system), _tables(system, backend, version), extras_per_token=per_token)


@cache
def _tables(system: str, backend: Backend, version: str | None) -> StoredTables:
    return open_tables(system, backend, version)


def built(
    model: str,
    split: Parallel,
    quantization: Quantization,
    *,
    system: str,
    backend: Backend,
    version: str | None = None,
    estimator: Estimator = AIC_012,
    mtp: Mtp = NO_DRAFTS,
) -> Worker:
    tables = _tables(system, backend, version)
    per_token = "attention-extras-per-token" in estimator.corrections
    performance = _measured(system, backend, version, per_token=per_token)
    graph = build_graph(
        find_model(model),
        split,
        quantization,
        system=performance.system,
        backend=backend,
        mtp=mtp,
        lanes=lanes_of(tables, performance.system),
        corrections=estimator.corrections,
    )
    return Worker(
        graph=graph,
        split=split,
        quantization=quantization,
        performance=performance,
        backend=backend,
        version=tables.version,
        estimator=estimator,
        mtp=mtp,
    )
