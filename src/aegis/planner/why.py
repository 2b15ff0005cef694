"""What binds a plan: memory, compute, links or a target; what would loosen it; and why other splits lose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from aegis.planner.operations import NoData
from aegis.planner.search.agg import BATCHES, Points, evaluate_points
from aegis.planner.search.disagg import DECODE_BATCHES, answered, rule_of
from aegis.planner.search.pick import Known, excess, known, meets, told_apart
from aegis.planner.single import steps
from aegis.planner.solve import Parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aegis.planner.answer import Candidate, ModeAnswer, Role
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.plan import Plan
    from aegis.planner.problem import Parallel, Targets, WorkerSearch
    from aegis.planner.single import Bound, Step, StepName
    from aegis.planner.task import Experiment

Binds = Literal[
    "memory",
    "TPOT target",
    "TTFT target",
    "request latency target",
    "saturation",
    "rate matching",
    "search",
    "largest batch tried",
]

LOOSER = (1.1, 1.25, 1.5, 2.0)  # times a target
# What workers of each role do.
_STEPS: dict[Role, tuple[StepName, ...]] = {
    "agg": ("mixed", "decode"),
    "prefill": ("prefill",),
    "decode": ("decode",),
}
SATURATED = 0.005  # a larger batch that adds less throughput than this adds nothing


class StepLimits(Struct, frozen=True, kw_only=True):
    """Where the time of a step goes."""

    name: StepName
    ms: float
    shares: dict[Bound, float]  # of the time, by the limit that binds each operation
    reached: float  # what the limits alone would take, as a share of the time


class Looser(Struct, frozen=True, kw_only=True):
    """What a looser target would give."""

    factor: float
    target: float  # ms
    gain: float  # relative, tokens/s of all GPUs
    candidate: Candidate


class Lost(Struct, frozen=True, kw_only=True):
    """A split that is not among the best."""

    role: Role
    split: Parallel
    reason: str


class Why(Struct, frozen=True, kw_only=True):
    """What binds the best configuration of one experiment."""

    name: str
    best: Candidate
    steps: tuple[StepLimits, ...]
    binds: Binds  # what keeps the batch from being larger
    next_batch: int | None  # that was looked at
    detail: str
    looser: tuple[Looser, ...]
    lost: tuple[Lost, ...]


def why(plan: Plan) -> tuple[Why, ...]:
    """Return what binds the best configuration of every experiment that has one."""
    parts = Parts()
    pairs = zip(plan.experiments, plan.answers, strict=True)
    return tuple(_why(experiment, answer, parts) for experiment, answer in pairs if answer.best)


def _why(experiment: Experiment, answer: ModeAnswer, parts: Parts) -> Why:
    best = answer.best[0]
    search = next(each for each in experiment.searches if each[0].backend == best.workers[0].backend)
    workers = [
        _worker(parts, kind, each.parallel, experiment)
        for kind, each in zip(search, best.workers, strict=True)
    ]
    worker = workers[-1]
    binds, batch, detail = _next_batch(experiment, best, worker)
    return Why(
        name=answer.name,
        best=best,
        steps=tuple(_limits(experiment, best, workers)),
        binds=binds,
        next_batch=batch,
        detail=detail,
        looser=tuple(_looser(experiment, answer)),
        lost=tuple(_lost(experiment, answer, search, parts)),
    )


def _worker(parts: Parts, search: WorkerSearch, split: Parallel, experiment: Experiment) -> Worker:
    return parts.workers(replace(search, splits=(split,)), experiment)[0]


def _limits(experiment: Experiment, best: Candidate, workers: Sequence[Worker]) -> Iterable[StepLimits]:
    """Yield where the time of each kind of step goes that the best configuration does."""
    chunk = best.context_tokens or experiment.load.isl
    for worker, each in zip(workers, best.workers, strict=True):
        done = steps(worker, experiment.load, batch=each.batch, chunk=chunk, names=_STEPS[each.role])
        yield from (_step_limits(step) for step in done if step.ms)


def _step_limits(step: Step) -> StepLimits:
    shares: dict[Bound, float] = {}
    for part in step.parts:
        shares[part.bound] = shares.get(part.bound, 0.0) + part.ms / step.ms
    ideal = sum(min(part.ideal, part.ms) for part in step.parts)
    return StepLimits(name=step.name, ms=step.ms, shares=shares, reached=ideal / step.ms)


def _next_batch(experiment: Experiment, best: Candidate, worker: Worker) -> tuple[Binds, int | None, str]:
    """Return what a larger batch runs into: which bound, which batch was looked at, and its figures."""
    role: Role = best.workers[-1].role
    tried = BATCHES if role == "agg" else DECODE_BATCHES
    now = best.workers[-1].batch
    larger = tried[tried > now]
    if not larger.size:
        return "largest batch tried", None, f"batch {now} is the largest that is tried"
    batch = int(larger[0])
    load, targets, tuning = experiment.load, experiment.targets, experiment.tuning
    chunk = best.context_tokens or None
    held, fits = worker.room(load, tuning, role=role, batch=batch, context_tokens=chunk)
    if not fits:
        return "memory", batch, worker.shortage(load, role=role, batch=batch)
    ttft, tpot, rate = _deliver(worker, experiment, batch, best)
    said = f"batch {batch}: TTFT {ttft:.1f} ms, TPOT {tpot:.2f} ms, {float(held):.1f} GiB"
    missed = _missed(targets, ttft, tpot, load.osl)
    if missed:
        return missed, batch, said
    before = best.workers[-1].requests_per_s
    if rate <= before * (1 + SATURATED):
        return "saturation", batch, f"{said}; {rate:.3f} requests/s against {before:.3f}"
    if best.mode == "agg":
        return "search", batch, f"{said}; {rate:.3f} requests/s against {before:.3f}"
    return "rate matching", batch, _rates(experiment, best)


def _rates(experiment: Experiment, best: Candidate) -> str:
    """Return what the prefill and the decode workers of a replica deliver, as the search matches them."""
    rule, tuning = rule_of(experiment.estimator), experiment.tuning
    factors = (
        tuning.prefill_correction or rule.prefill_rate,
        tuning.decode_correction or rule.decode_rate,
    )
    prefill, decode = (
        each.count * each.requests_per_s * factor for each, factor in zip(best.workers, factors, strict=True)
    )
    return f"prefill workers hand on {prefill:.2f} requests/s, decode workers can take {decode:.2f}"


def _missed(targets: Targets, ttft: float, tpot: float, osl: int) -> Binds | None:
    if targets.request_latency is not None:
        return "request latency target" if ttft + tpot * (osl - 1) > targets.request_latency else None
    if tpot > targets.tpot:
        return "TPOT target"
    return "TTFT target" if ttft > targets.ttft else None


def _deliver(
    worker: Worker, experiment: Experiment, batch: int, best: Candidate
) -> tuple[float, float, float]:
    """Return TTFT, TPOT (ms) and requests/s of one worker at another batch size."""
    load = experiment.load
    if best.mode == "agg":
        points = Points(np.array([batch]), np.array([best.context_tokens]), np.zeros(1))
        ttft, tpot, rate = (float(each[0]) for each in evaluate_points(worker, load, points))
        return ttft, tpot, rate
    now, larger = answered(worker, load, np.array([best.workers[-1].batch, batch])).tolist()
    tpot = best.tpot * larger / now  # with the factors of the search
    rate = 1000 * batch * worker.split.dp * worker.split.pp / (tpot * (load.osl - 1))
    return best.ttft, tpot, rate


def _looser(experiment: Experiment, answer: ModeAnswer) -> Iterable[Looser]:
    """Yield what a looser target would add, where it adds anything."""
    targets, total = experiment.targets, experiment.total_gpus
    limit = targets.request_latency or targets.tpot
    reached = answer.best[0].cluster_throughput(total)
    for factor in LOOSER:
        wider = (
            replace(targets, tpot=targets.tpot * factor)
            if targets.request_latency is None
            else replace(targets, request_latency=limit * factor)
        )
        found = [
            each
            for each in answer.candidates
            if each.replicas(total) and meets(each, wider) and not meets(each, targets)
        ]
        if not found:
            continue
        best = max(found, key=lambda each: each.cluster_throughput(total))
        gain = best.cluster_throughput(total) / reached - 1
        if gain > SATURATED:
            reached = best.cluster_throughput(total)
            yield Looser(
                factor=factor,
                target=limit * factor,
                gain=reached / answer.best[0].cluster_throughput(total) - 1,
                candidate=best,
            )


def _lost(
    experiment: Experiment, answer: ModeAnswer, search: Sequence[WorkerSearch], parts: Parts
) -> Iterable[Lost]:
    """Yield why each other split of the (decode) workers is not the best one."""
    role: Role = "agg" if experiment.mode == "agg" else "decode"
    own = known(answer.best[0], experiment.total_gpus)
    for split in search[-1].splits:
        if split == answer.best[0].workers[-1].parallel:
            continue
        try:
            worker = _worker(parts, search[-1], split, experiment)
        except NoData as error:
            yield Lost(role=role, split=split, reason=error.message)
            continue
        yield Lost(role=role, split=split, reason=_reason(experiment, answer, worker, own))


def _reason(experiment: Experiment, answer: ModeAnswer, worker: Worker, own: Known) -> str:
    role: Role = answer.best[0].workers[-1].role
    if not worker.room(experiment.load, experiment.tuning, role=role, batch=1)[1].all():
        return f"does not fit: {worker.shortage(experiment.load, role=role)}"
    there = [
        each
        for each in answer.candidates
        if each.workers[-1].parallel == worker.split and each.replicas(experiment.total_gpus)
    ]
    if not there:
        return "no point of it is among the best for any target"
    able = [each for each in there if meets(each, experiment.targets)]
    if not able:
        nearest = min(there, key=lambda each: excess(each, experiment.targets))
        return f"misses the target: {excess(nearest, experiment.targets):.2f} ms at best"
    best = max(able, key=lambda each: each.cluster_throughput(experiment.total_gpus))
    apart = told_apart(own, known(best, experiment.total_gpus))
    return f"{best.cluster_throughput(experiment.total_gpus) / own.value - 1:+.1%} tokens/s of all GPUs" + (
        "" if apart else ", which cannot be told apart"
    )
