"""Aggregated serving: prompts and decodes share the steps of one worker (planner-model, section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aegis.planner.answer import Candidate, Workers, spread_of_sum
from aegis.planner.estimate.aggregated import rates
from aegis.planner.operations import NoData
from aegis.planner.search.context_tokens import context_tokens
from aegis.planner.search.targets import pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.estimate.aggregated import Rates
    from aegis.planner.estimate.memory import Bools
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.estimator import Estimator
    from aegis.planner.operations import Floats, Ints
    from aegis.planner.problem import Load, Targets, Tuning
    from aegis.planner.search.targets import Pair

BATCHES = np.array(
    [*range(1, 16), *range(16, 32, 4), *range(32, 64, 8), *range(64, 256, 16), *range(256, 512, 32), 512]
)
KEPT = 10  # for each worker and pair of targets
DIGITS = 3  # of what is ranked: ties depend on it


class Points(NamedTuple):
    """Points of one worker, one element each."""

    batch: Ints  # requests of one attention group
    chunk: Ints  # prompt tokens of a mixed step
    memory: Floats  # GiB


def sweep_agg(
    workers: Sequence[Worker],
    load: Load,
    targets: Targets,
    tuning: Tuning,
    estimator: Estimator,
    *,
    left_out: list[str] | None = None,
) -> list[Candidate]:
    """Return the best points of every worker for every pair of targets, most tokens/s of a GPU first.

    A worker that the tables cannot answer for is passed over; the reason is added to `left_out`.
    """
    wanted = pairs(load, targets, estimator)
    kept: list[Candidate] = []
    for worker in workers:
        points = _points(worker, load, tuning)
        if not len(points.batch):
            continue
        try:
            delivered = evaluate_points(worker, load, points)
        except NoData as error:
            if left_out is not None:
                left_out.append(f"{worker.label}: {error.message}")
            continue
        kept += _candidates(worker, load, points, delivered, _best(delivered, wanted, worker.place.guide))
    return sorted(kept, key=lambda each: -each.tokens_per_s_gpu)


def evaluate_points(worker: Worker, load: Load, points: Points) -> Rates:
    """Return what points deliver, unrounded.

    Raises:
        NoData: the tables cannot answer for this worker.
    """
    return rates(worker, load, points.batch, points.chunk)


def _points(worker: Worker, load: Load, tuning: Tuning) -> Points:
    """Return the points that are possible and not alike."""
    sizes = context_tokens(load.isl, rules=worker.estimator.rules, chunked=tuning.chunked_prefill)
    batch, chunk = (each.ravel() for each in np.meshgrid(BATCHES, sizes, indexing="ij"))
    prompts = -(-chunk // load.isl)
    able = np.where(batch > 1, batch > prompts, prompts == 1)  # a request must be left that decodes
    batch, chunk = batch[able], chunk[able]
    memory, fits = worker.room(load, tuning, role="agg", batch=batch, context_tokens=chunk)
    batch, chunk, memory = batch[fits], chunk[fits], memory[fits]
    kept = _unlike(batch, chunk, load) if worker.progress == 1 else np.ones(batch.shape, dtype=bool)
    return Points(batch[kept], chunk[kept], memory[kept])


def _unlike(batch: Ints, chunk: Ints, load: Load) -> Bools:
    """Tell which points are the first of those whose prompts leave equally few requests to decode."""
    balance = load.isl * batch / chunk / load.osl  # time to read over time to answer
    generating = batch // balance
    kept = (balance <= 1) | (generating <= 1)
    alike = np.flatnonzero(~kept)
    kept[alike[np.unique(generating[alike], return_index=True)[1]]] = True
    return kept


def _best(found: Rates, wanted: Sequence[Pair], guide: bool) -> Ints:
    """Return which points are among the best of any pair of targets."""
    order = np.argsort(-np.round(found.requests_per_s, DIGITS), kind="stable")
    ttft, tpot = found.ttft[order], found.tpot[order]
    if guide:  # compares what it shows
        ttft, tpot = np.round(ttft, DIGITS), np.round(tpot, DIGITS)
    limits = np.array(wanted, dtype=np.float64).reshape(-1, 2)
    meets = (ttft <= limits[:, :1]) & (tpot <= limits[:, 1:])
    best = meets & (np.cumsum(meets, axis=1) <= KEPT)
    chosen: Ints = order[best.any(axis=0)]
    return chosen


def _candidates(
    worker: Worker, load: Load, points: Points, delivered: Rates, chosen: Ints
) -> list[Candidate]:
    """Return points as they are shown."""
    split, osl = worker.split, load.osl
    counted = osl if "count-output-alike" in worker.estimator.corrections else osl - 1
    ttft, tpot, requests = (column[chosen] for column in delivered)
    sure = sureness(worker, load, points.batch[chosen], ttft, tpot)
    columns = (
        points.batch[chosen],
        points.chunk[chosen],
        points.memory[chosen],
        ttft,
        tpot,
        ttft + tpot * (osl - 1),
        requests,
        requests * counted,
        requests * counted / split.gpus,
        np.divide(1000.0, tpot, out=np.zeros(tpot.shape), where=tpot > 0),
    )
    return [
        Candidate(
            mode="agg",
            workers=(
                Workers(
                    role="agg",
                    system=worker.performance.system.name,
                    backend=worker.backend,
                    version=worker.version,
                    parallel=split,
                    quantization=worker.quantization,
                    batch=batch,
                    memory=memory,
                    requests_per_s=rate,
                ),
            ),
            ttft=first,
            tpot=further,
            request_latency=latency,
            concurrency=batch * split.pp * split.dp,
            requests_per_s=rate,
            tokens_per_s=tokens,
            tokens_per_s_gpu=tokens_gpu,
            tokens_per_s_user=tokens_user,
            context_tokens=chunk,
            estimated=worker.performance.system.estimated,
            notes=worker.performance.notes,
            **known,
        )
        for (
            batch,
            chunk,
            memory,
            first,
            further,
            latency,
            rate,
            tokens,
            tokens_gpu,
            tokens_user,
        ), known in zip(
            zip(*(np.round(column, DIGITS).tolist() for column in columns), strict=True), sure, strict=True
        )
    ]


def sureness(worker: Worker, load: Load, batch: Ints, ttft: Floats, tpot: Floats) -> list[dict[str, Any]]:
    """Return for each point how sure its figures are, as fields of a candidate; nothing where that is not known."""
    if worker.residual is None:
        return [{} for _ in batch]
    first, further = worker.residual.aggregated(worker, load, batch)
    columns = ttft, tpot * (load.osl - 1), first.spread, further.spread
    return [
        {
            "ttft_spread": round(one, DIGITS),
            "tpot_spread": round(other, DIGITS),
            "spread": round(spread_of_sum(reading, rest, one, other), DIGITS),
            "measured": further.measured,
        }
        for reading, rest, one, other in zip(*(column.tolist() for column in columns), strict=True)
    ]
