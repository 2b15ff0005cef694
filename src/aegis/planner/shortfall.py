"""Why an experiment has no answer, with the figures: tables, memory, the number of GPUs, or a target."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from aegis.planner.operations import NoData
from aegis.planner.search.pick import excess
from aegis.planner.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.answer import Candidate
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.task import Experiment

_LOOSER = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0, math.inf)  # times the TTFT target: where something is found


def shortfall(
    experiment: Experiment, pools: Sequence[list[list[Worker]]], candidates: Sequence[Candidate]
) -> str:
    """Return what stands in the way.

    Args:
        experiment: what was asked.
        pools: workers, of each backend and kind.
        candidates: what was found, if anything; all of it misses a target or is too large.
    """
    if not candidates:
        smallest = 0
        for role, workers in _roles(experiment, pools):
            lacking = [_lacking(experiment, role, worker) for worker in workers]
            known = [worker for worker, lack in zip(workers, lacking, strict=True) if lack is None]
            if not known:
                return f"no figures for {experiment.model.name}: {lacking[0]}"
            fitting = [worker for worker in known if _fits(experiment, role, worker)]
            if not fitting:
                least = min(known, key=lambda each: _held(experiment, role, each))
                return f"{experiment.model.name} fits on no GPU here: {least.shortage(experiment.load, role=role)}"
            smallest += min(worker.split.gpus for worker in fitting)
        if smallest > experiment.total_gpus:
            return _too_large(experiment, smallest)
    there = [each for each in candidates if each.replicas(experiment.total_gpus)]
    if candidates and not there:
        return _too_large(experiment, min(each.gpus for each in candidates))
    if there:
        return _missed(experiment, min(there, key=lambda each: excess(each, experiment.targets)))
    return _first_token(experiment, pools)


def _too_large(experiment: Experiment, smallest: int) -> str:
    return f"the smallest replica takes {smallest} GPUs, and there are {experiment.total_gpus}"


def _roles(experiment: Experiment, pools: Sequence[list[list[Worker]]]) -> list[tuple[Any, list[Worker]]]:
    roles = ("agg",) if experiment.mode == "agg" else ("prefill", "decode")
    return [(role, [worker for pool in pools for worker in pool[index]]) for index, role in enumerate(roles)]


def _lacking(experiment: Experiment, role: Any, worker: Worker) -> str | None:
    """Return what the tables cannot answer for a worker."""
    load = experiment.load
    try:
        if role != "decode":
            worker.prefill(1, load.isl, load.prefix)
        if role != "prefill":
            worker.decode(1, load.isl)
    except NoData as error:
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return None


def _fits(experiment: Experiment, role: Any, worker: Worker) -> bool:
    return bool(worker.room(experiment.load, experiment.tuning, role=role, batch=1)[1].all())


def _held(experiment: Experiment, role: Any, worker: Worker) -> float:
    return float(worker.room(experiment.load, experiment.tuning, role=role, batch=1)[0])


def _missed(experiment: Experiment, nearest: Candidate) -> str:
    """Return which target nothing meets, and the nearest."""
    targets = experiment.targets
    if targets.request_latency is not None:
        what, wanted, found = "request latency", targets.request_latency, nearest.request_latency
    else:
        what, wanted, found = "TPOT", targets.tpot, nearest.tpot
    first = f" (with TTFT within {targets.ttft:g} ms)" if math.isfinite(targets.ttft) else ""
    return f"no configuration has a {what} of {wanted:g} ms or less{first}: the nearest has {found:.2f} ms"


def _first_token(experiment: Experiment, pools: Sequence[list[list[Worker]]]) -> str:
    """Return how long a first token takes, where no configuration is fast enough."""
    targets = experiment.targets
    whole = targets.request_latency
    limit = targets.ttft if whole is None else min(targets.ttft, whole)
    for factor in _LOOSER:
        looser = replace(targets, ttft=limit * factor, request_latency=None)
        found = [each for pool in pools for each in sweep(experiment, pool, looser)]
        found = [each for each in found if each.replicas(experiment.total_gpus)]
        if found:
            if whole is not None and any(each.ttft <= limit for each in found):
                return _missed(experiment, min(found, key=lambda each: excess(each, targets)))
            least = min(found, key=lambda each: each.ttft)
            return (
                f"no configuration has its first token within {limit:g} ms: "
                f"the nearest has TTFT {least.ttft:.2f} ms and TPOT {least.tpot:.2f} ms"
            )
    return "no configuration holds a single request"
