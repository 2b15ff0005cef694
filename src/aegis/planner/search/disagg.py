"""Disaggregated serving: x prefill workers feed y decode workers (planner-model, section 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aegis.planner.answer import Candidate, Workers, spread_of_sum
from aegis.planner.arrays import distinct
from aegis.planner.estimate import queueing
from aegis.planner.operations import NoData
from aegis.planner.search.matching import Pool, bounds, match
from aegis.planner.search.targets import pairs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.planner.answer import Role
    from aegis.planner.estimate.memory import Bools
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.estimator import Estimator
    from aegis.planner.operations import Floats, Ints
    from aegis.planner.problem import Load, Replica, Targets, Tuning
    from aegis.planner.search.matching import Matching
    from aegis.planner.search.targets import Pair

DECODE_BATCHES = np.array([*range(1, 16), *range(16, 32, 2), *range(32, 128, 4), *range(128, 512, 8), 512])


class Rule(NamedTuple):
    """How one set of rules goes about it."""

    prefill_latency: float  # factors on what the tables say
    decode_latency: float
    queueing: float  # factor on the time to the first token, for requests that wait for a prefill worker
    prefill_rate: float  # of a pool: bubbles between requests
    decode_rate: float  # of a pool: slots of the batch that stay empty
    slowest: float  # least share of the TPOT target that a decode worker uses
    most_prefill: int
    most_decode: int  # guide: of all splits together; current: of each
    kept: int = 5  # for each pair of targets


RULES = {
    "guide": Rule(1.0, 1.0, 1.0, 0.9, 0.92, 0.7, 32, 64),
    "current": Rule(1.1, 1.08, 1.8, 0.9, 0.92, 0.0, 32, 16),
    "measured": Rule(1.0, 1.0, 1.8, 0.9, 0.92, 0.0, 32, 16),
}


def rule_of(estimator: Estimator) -> Rule:
    """Return the rule of an estimator; where steps take as long as measured, no factor stands for the difference."""
    return RULES["measured" if "steps-as-measured" in estimator.corrections else estimator.rules]


class Points(NamedTuple):
    """Workers of one role at one batch size each, those with the most requests/s of a GPU first."""

    worker: Ints  # index
    batch: Ints
    latency: Floats  # ms; prefill: to the first token; decode: of one further token
    user: Floats  # tokens/s of one user, of decode points; rounded once, not from the rounded latency
    rate: Floats  # requests/s
    gpus: Ints
    tp: Ints
    memory: Floats  # GiB
    rank: (
        Floats  # requests/s of a GPU; GPUs that share a prompt count as one, as aiconfigurator 0.12.0 has it
    )

    def take(self, index: Ints) -> Points:
        """Return some of them, in this order."""
        return Points(*(column[index] for column in self))  # type: ignore[arg-type]


class Search(NamedTuple):
    """What all parts of one sweep share."""

    prefill: Sequence[Worker]
    decode: Sequence[Worker]
    load: Load
    targets: Targets
    tuning: Tuning
    estimator: Estimator
    rule: Rule


def sweep_disagg(
    prefill: Sequence[Worker],
    decode: Sequence[Worker],
    *,
    load: Load,
    targets: Targets,
    replica: Replica,
    tuning: Tuning,
    estimator: Estimator,
    total_gpus: int,
    same_tp: bool = False,
) -> list[Candidate]:
    """Return the best replicas for every pair of targets; empty where no worker fits or is fast enough.

    `same_tp`: the engine hands its KV cache on only between workers of the same tensor split, or with wide experts.
    """
    search = Search(prefill, decode, load, targets, tuning, estimator, rule_of(estimator))
    before, after = _prefill_points(search), _decode_points(search)
    if not len(before.batch) or not len(after.batch):
        return []
    scales = (
        tuning.prefill_correction or search.rule.prefill_rate,
        tuning.decode_correction or search.rule.decode_rate,
    )
    limits = bounds(replica, total_gpus=total_gpus, rules=estimator.rules)
    matching = match(Pool(before.rate, before.gpus), Pool(after.rate, after.gpus), limits, scales=scales)
    allowed = matching.gpus > 0
    if same_tp:
        allowed &= (before.tp[:, None] == after.tp) | _any_wide(search, before, after)
    ttft = _ttft(search, before, after, matching)
    with np.errstate(divide="ignore", invalid="ignore"):
        throughput = np.where(allowed, matching.rate * load.osl / matching.gpus, -np.inf)
    field = Field(before, after, matching, ttft, throughput)
    choose = _choose_guide if estimator.rules == "guide" else _choose_current
    chosen = dict.fromkeys(choose(search, field, pairs(load, targets, estimator)))
    return [_candidate(search, field, *each) for each in chosen]


def _any_wide(search: Search, before: Points, after: Points) -> Bools:
    """Tell of every pair whether either worker has wide experts."""
    first = np.array([worker.graph.wide for worker in search.prefill])[before.worker]
    second = np.array([worker.graph.wide for worker in search.decode])[after.worker]
    return np.asarray(first[:, None] | second)


class Field(NamedTuple):
    """All pairs of prefill and decode points: matrices (prefill, decode)."""

    before: Points
    after: Points
    matching: Matching
    ttft: Floats  # ms
    throughput: Floats  # output tokens/s of a GPU; -inf where no replica is possible


def _prefill_points(search: Search) -> Points:
    batch = np.arange(1, search.tuning.prefill_max_batch + 1)
    rows = []
    for index, worker in enumerate(search.prefill):
        try:
            memory, fits = worker.room(search.load, search.tuning, role="prefill", batch=batch)
            able = batch[fits]
            factor = search.tuning.prefill_latency or search.rule.prefill_latency
            latency = worker.prefill(able, search.load.isl, search.load.prefix) * factor
        except NoData:
            continue
        rows.append(_worker_points(index, worker, able, latency=latency, whole=latency, memory=memory[fits]))
    return _points(rows)


def _decode_points(search: Search) -> Points:
    batch = DECODE_BATCHES[search.tuning.decode_max_batch >= DECODE_BATCHES]
    load = search.load
    rows = []
    for index, worker in enumerate(search.decode):
        try:
            memory, fits = worker.room(load, search.tuning, role="decode", batch=batch)
            fits = np.logical_and.accumulate(fits)  # a larger batch is not tried after one that did not fit
            able = batch[fits]
            factor = search.tuning.decode_latency or search.rule.decode_latency
            whole = answered(worker, load, able) * factor
        except NoData:
            continue
        latency = whole / max(load.osl - 1, 1)
        rows.append(_worker_points(index, worker, able, latency=latency, whole=whole, memory=memory[fits]))
    return _points(rows)


def answered(worker: Worker, load: Load, batch: Ints) -> Floats:
    """Return ms in which a decode worker gives so many requests all their tokens after the first one.

    Raises:
        NoData: the tables cannot answer for this split.
    """
    whole = worker.generation_total(batch, load.isl, load.osl)
    if worker.residual is not None:
        whole = whole * worker.residual.decoding(worker, load, batch).factor
    return whole


def _points(rows: list[Points]) -> Points:
    """Join the points of all workers; rounded as the rows of a table are: ties depend on it."""
    if not rows:
        nothing, none = np.empty(0), np.empty(0, dtype=np.int64)
        return Points(none, none, nothing, nothing, nothing, none, none, nothing, nothing)
    joined = Points(*(np.concatenate(column) for column in zip(*rows, strict=True)))
    return joined.take(np.argsort(-joined.rank, kind="stable"))


def _worker_points(
    index: int, worker: Worker, batch: Ints, *, latency: Floats, whole: Floats, memory: Floats
) -> Points:
    """Return the points of one worker that serves `batch` requests of an attention group in `whole` ms."""
    split = worker.split
    rate = np.round(batch * split.dp * split.pp / whole * 1000, 3)
    user: Floats = np.divide(1000.0, latency, out=np.zeros(latency.shape), where=latency > 0)
    return Points(
        np.full(batch.shape, index),
        batch,
        np.round(latency, 3),
        np.round(user, 3),
        rate,
        np.full(batch.shape, split.gpus),
        np.full(batch.shape, split.tp),
        np.round(memory, 3),
        np.round(rate * split.cp / split.gpus, 3),
    )


def _ttft(search: Search, before: Points, after: Points, matching: Matching) -> Floats:
    """Return ms to the first token of every pair."""
    shape = matching.gpus.shape
    if "prefill-queueing" in search.estimator.corrections:
        ttft = queueing.ttft(before.latency[:, None], before.rate[:, None], matching)
    else:
        ttft = np.repeat(before.latency[:, None] * search.rule.queueing, shape[1], axis=1)
    if "kv-transfer" in search.estimator.corrections:
        ttft = ttft + _transfer(search, before, after)
    if "host-time-in-ttft" in search.estimator.corrections:
        ttft = ttft + search.prefill[0].host.first
    users = matching.rate * (ttft + after.latency * (search.load.osl - 1)) / 1000
    for index, worker in enumerate(search.prefill):
        if worker.residual is not None:
            rows = before.worker == index
            ttft[rows] *= worker.residual.prefilling(worker, search.load, users[rows]).factor
    return ttft


def _transfer(search: Search, before: Points, after: Points) -> Floats:
    """Return ms that the KV cache of one request travels, for every pair."""
    sent = np.array([worker.kv_transfer(search.load) for worker in search.prefill])[before.worker]
    taken = np.array([worker.kv_transfer(search.load) for worker in search.decode])[after.worker]
    slower: Floats = np.maximum(sent[:, None], taken)
    return slower


def _choose_guide(search: Search, field: Field, wanted: Sequence[Pair]) -> Iterator[tuple[int, int]]:
    """Yield for each pair of targets the best pairs of points: most tokens/s of a GPU, then fewer GPUs."""
    rule, after = search.rule, field.after
    for ttft, tpot in wanted:
        fast = (after.latency < tpot) & (after.latency > rule.slowest * tpot)
        decode = np.flatnonzero(fast)[: rule.most_decode]
        prefill = np.flatnonzero(field.before.latency < ttft)[: rule.most_prefill]
        at = np.ix_(prefill, decode)
        throughput, gpus = field.throughput[at].ravel(), field.matching.gpus[at].ravel()
        for each in np.lexsort((gpus, -np.round(throughput, 3)))[: rule.kept]:
            if np.isfinite(throughput[each]):
                row, column = divmod(int(each), len(decode))
                yield int(prefill[row]), int(decode[column])


def _choose_current(search: Search, field: Field, wanted: Sequence[Pair]) -> Iterator[tuple[int, int]]:
    """Yield for each pair of targets the best pair of points of each decode split, at most `kept` of them."""
    after = field.after
    for ttft in dict.fromkeys(pair.ttft for pair in wanted):
        tpots = np.array([pair.tpot for pair in wanted if pair.ttft == ttft])
        rows, throughput, gpus = _best_prefill(field, ttft, search.rule)
        columns = np.array(
            [
                _best_decode(np.flatnonzero(after.worker == worker), field, tpots, throughput, gpus)
                for worker in distinct(after.worker)
            ]
        )  # (splits, targets), -1: none
        score = np.where(columns >= 0, np.round(throughput[columns], 3), -np.inf)
        ranked = np.argsort(-score, axis=0, kind="stable")[: search.rule.kept]
        for row, target in np.argwhere(np.isfinite(np.take_along_axis(score, ranked, axis=0)).T)[:, ::-1]:
            column = int(columns[ranked[row, target], target])
            yield int(rows[column]), column


def _best_prefill(field: Field, ttft: float, rule: Rule) -> tuple[Ints, Floats, Ints]:
    """Return for each decode point: the prefill point with the most tokens/s of a GPU, then the fewest GPUs; both."""
    soon = field.ttft < ttft
    soon &= np.cumsum(soon, axis=0) <= rule.most_prefill
    throughput = np.where(soon, field.throughput, -np.inf)
    top: Floats = throughput.max(axis=0)
    gpus = np.where(throughput == top, field.matching.gpus, np.iinfo(np.int64).max)
    return np.argmin(gpus, axis=0), top, gpus.min(axis=0)


def _best_decode(columns: Ints, field: Field, tpots: Floats, throughput: Floats, gpus: Ints) -> Ints:
    """Return for each TPOT target the best of the decode points of one split, -1 where none is fast enough."""
    fast = field.after.latency[columns] < tpots[:, None]  # (targets, points)
    fast &= np.cumsum(fast, axis=1) <= RULES["current"].most_decode
    of_target = np.where(fast, throughput[columns], -np.inf)
    top = of_target.max(axis=1, keepdims=True)
    best = np.argmin(np.where(of_target == top, gpus[columns], np.iinfo(np.int64).max), axis=1)
    chosen: Ints = np.where(np.isfinite(top[:, 0]), columns[best], -1)
    return chosen


def _candidate(search: Search, field: Field, row: int, column: int) -> Candidate:
    """Return one replica as it is shown."""
    osl = search.load.osl
    matching, after = field.matching, field.after
    rate = float(matching.rate[row, column])
    gpus = int(matching.gpus[row, column])
    ttft, tpot = round(float(field.ttft[row, column]), 3), float(after.latency[column])
    prefill, decode = search.prefill[int(field.before.worker[row])], search.decode[int(after.worker[column])]
    latency = round(ttft + tpot * (osl - 1), 3)
    counts = int(matching.prefill_workers[row, column]), int(matching.decode_workers[row, column])
    return Candidate(
        mode="disagg",
        workers=(
            _workers(prefill, "prefill", counts[0], field.before, row),
            _workers(decode, "decode", counts[1], after, column),
        ),
        ttft=ttft,
        tpot=tpot,
        request_latency=latency,
        concurrency=_concurrency(
            search, rate, latency, slots=int(after.batch[column]) * decode.split.dp * counts[1]
        ),
        requests_per_s=_shown(rate),
        tokens_per_s=_shown(rate * osl),
        tokens_per_s_gpu=_shown(rate * osl / gpus),
        tokens_per_s_user=float(after.user[column]),
        estimated=prefill.performance.system.estimated or decode.performance.system.estimated,
        **_sureness(search, prefill, decode, batch=int(after.batch[column]), rate=rate, times=(ttft, tpot)),
    )


def _sureness(
    search: Search, prefill: Worker, decode: Worker, *, batch: int, rate: float, times: tuple[float, float]
) -> dict[str, Any]:
    """Return how sure the figures of a replica are, as fields of a candidate; nothing where that is not known."""
    if prefill.residual is None or decode.residual is None:
        return {}
    load, (ttft, tpot) = search.load, times
    rest = tpot * (load.osl - 1)
    users = np.array([rate * (ttft + rest) / 1000])
    first = float(prefill.residual.prefilling(prefill, load, users).spread[0])
    further = decode.residual.decoding(decode, load, np.array([batch]))
    return {
        "ttft_spread": round(first, 3),
        "tpot_spread": round(float(further.spread[0]), 3),
        "spread": round(spread_of_sum(ttft, rest, first, float(further.spread[0])), 3),
        "measured": further.measured,
    }


def _concurrency(search: Search, rate: float, latency: float, *, slots: int) -> int:
    """Return how many users a replica serves: all slots of its decode workers, or those that its rate fills.

    With more users than that the prefill workers saturate, and the wait for a first token grows without bound.
    """
    if "decode-slots-in-use" not in search.estimator.corrections:
        return slots
    return min(int(queueing.concurrency(np.asarray(rate), np.asarray(latency))), slots)


def _shown(value: float) -> float:
    """Return a figure as the tables round it: numpy's way, which differs from Python's in the last digit of ties."""
    return float(np.round(value, 3))


def _workers(worker: Worker, role: Role, count: int, points: Points, index: int) -> Workers:
    return Workers(
        role=role,
        count=count,
        system=worker.performance.system.name,
        backend=worker.backend,
        version=worker.version,
        parallel=worker.split,
        quantization=worker.quantization,
        batch=int(points.batch[index]),
        memory=float(points.memory[index]),
        requests_per_s=float(points.rate[index]),
    )
