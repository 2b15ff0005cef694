"""One configuration by itself: what its steps take, operation by operation, what it delivers and what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from msgspec import Struct, structs
from msgspec.structs import replace

from aegis.errors import ConfigError, DeploymentError, Problem
from aegis.planner.defaults import fill
from aegis.planner.estimate.aggregated import undisturbed
from aegis.planner.estimate.host import Host
from aegis.planner.estimate.memory import GIB
from aegis.planner.models.formats import format_name
from aegis.planner.models.resolve import find_model
from aegis.planner.models.splits import objection
from aegis.planner.operations import Fallback, NoData, Overlap, kind_of
from aegis.planner.perf.sol import SpeedOfLight
from aegis.planner.search.agg import Points, evaluate_points, sureness
from aegis.planner.simulated import Simulated  # noqa: TC001 - msgspec reads it
from aegis.planner.solve import Parts
from aegis.planner.task import Formats, Lists, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from aegis.planner.calibrate import Calibrations
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.estimator import Estimator
    from aegis.planner.operations import Floats, Kind, Leaf, Operation, Performance, Query
    from aegis.planner.problem import DatabaseMode, Load, Mtp, Parallel, Quantization, Tuning
    from aegis.planner.systems import System
    from aegis.planner.task import Experiment, WorkerQuestion

StepName = Literal["prefill", "mixed", "decode"]
STEPS: tuple[StepName, ...] = ("prefill", "mixed", "decode")
Bound = Literal["compute", "memory", "link", "host"]

_ENDLESS = 1e30  # bytes/s or FLOPS: what is never waited for


class Part(Struct, frozen=True, kw_only=True):
    """One operation of a step."""

    name: str
    kind: Kind
    ms: float
    ideal: float  # ms that the hardware's limits alone would take; 0: there is no formula
    bound: Bound  # by which of its limits


class Step(Struct, frozen=True, kw_only=True):
    """One step of a worker."""

    name: StepName
    ms: float
    parts: tuple[Part, ...]


class Estimate(Struct, frozen=True, kw_only=True):
    """One worker at one batch size."""

    label: str
    model: str = ""  # as it was asked for
    system: str
    backend: str
    version: str
    split: Parallel
    quantization: Quantization
    load: Load
    batch: int  # requests of one attention group
    context_tokens: int  # of a mixed step
    steps: tuple[Step, ...]
    memory: dict[str, float]  # GiB of one GPU
    capacity: float  # GiB
    fits: bool
    ttft: float  # ms
    tpot: float  # ms
    prefill_share: float  # of the TPOT: what the prompts of other requests take
    request_latency: float  # ms
    concurrency: int
    requests_per_s: float
    tokens_per_s: float
    tokens_per_s_gpu: float
    tokens_per_s_user: float
    uncertainty: float = 0.0  # relative, of an estimated system
    spread: float = 0.0  # standard deviation of the logarithm of tokens_per_s_gpu; 0: not known
    ttft_spread: float = 0.0
    tpot_spread: float = 0.0
    measured: int = 0  # deployments of this model, system and engine behind it
    notes: tuple[str, ...] = ()
    simulated: Simulated | None = None  # step by step, where that was asked for


class Asked(NamedTuple):
    """What one configuration is."""

    worker: WorkerQuestion  # without lists
    split: Parallel  # moe_ep 0: what tp, dp, cp and moe_tp leave
    load: Load
    tuning: Tuning
    estimator: Estimator
    mtp: Mtp | None = None
    calibration: Calibrations = ()
    database_mode: DatabaseMode = "SILICON"
    where: Callable[[str], str] = str  # key -> the flag that it stands for


def worker_of(asked: Asked) -> Worker:
    """Return the worker of one split.

    Raises:
        AegisError: as `experiment_of`, and there are no figures.
    """
    return priced(experiment_of(asked))


def priced(experiment: Experiment) -> Worker:
    """Return the only worker of an experiment of `experiment_of`.

    Raises:
        ConfigError: the model cannot be split so.
    """
    ((search,),) = experiment.searches[:1]
    try:
        return Parts().workers(search, experiment)[0]
    except NoData as error:
        raise ConfigError(error.message, hint=error.hint) from None


def experiment_of(asked: Asked) -> Experiment:
    """Return one configuration as an experiment without gaps; its notes say what was chosen.

    Raises:
        DeploymentError: the model, the system or a format is unknown.
        ConfigError: no worker is split so.
    """
    experts = _experts(asked)
    problems: list[Problem] = []
    formats = _formats(asked, problems)
    problems += [] if experts else _needless(asked)
    if problems:
        raise DeploymentError(problems)
    split = _whole(asked.split, has_experts=experts)
    lists = Lists(
        gpus=(split.gpus,),
        **{name: (getattr(split, name),) for name in ("tp", "pp", "dp", "moe_tp", "moe_ep", "cp")},
    )
    question = Question(
        name="estimate",
        mode="agg",
        total_gpus=split.gpus,
        workers=(replace(asked.worker, lists=lists, formats=formats),),
        load=asked.load,
        tuning=asked.tuning,
        estimator=asked.estimator,
        mtp=asked.mtp,
        calibration=asked.calibration,
        database_mode=asked.database_mode,
        where=asked.where,
    )
    try:
        (experiment,) = fill([question])
    except DeploymentError as error:
        backend = (*asked.worker.backends, "trtllm")[0]
        said = objection(split, has_experts=experts, backend=backend, rules=asked.estimator.rules)
        if said and all(problem.where == asked.where("agg.gpus") for problem in error.problems):
            raise ConfigError(said) from None
        raise
    return experiment


def _experts(asked: Asked) -> bool:
    """Tell whether the model has experts; of one that is unknown `fill` tells more."""
    try:
        return find_model(asked.worker.model).has_experts
    except ConfigError:
        return True


def _whole(split: Parallel, *, has_experts: bool) -> Parallel:
    """Return a split with a size of expert parallelism."""
    left = split.tp * split.dp * split.cp // split.moe_tp if has_experts else 1
    return replace(split, moe_ep=split.moe_ep or max(left, 1))


def _formats(asked: Asked, problems: list[Problem]) -> Formats:
    """Return the formats that are asked for by their names inside."""
    given = structs.asdict(asked.worker.formats)
    for name, value in given.items():
        try:
            given[name] = None if value is None else format_name(value)
        except ConfigError as error:
            problems.append(Problem(asked.where(name), error.message, error.hint))
    return Formats(**given)


def _needless(asked: Asked) -> Iterator[Problem]:
    """Yield what is said of the experts of a model that has none."""
    given = {name: getattr(asked.split, name) > 1 for name in ("dp", "moe_tp", "moe_ep")}
    given["moe"] = asked.worker.formats.moe is not None
    for name, said in given.items():
        if said:
            what = "attention is split by dp beside experts" if name == "dp" else "leave it out"
            yield Problem(asked.where(name), f"{asked.worker.model} has no experts", what)


def estimate(
    worker: Worker, load: Load, tuning: Tuning, *, batch: int, context_tokens: int | None = None
) -> Estimate:
    """Return what a worker does with `batch` requests in flight and chunks of so many prompt tokens (default: a prompt).

    Raises:
        ConfigError: the chunk holds as many prompts as there are requests, so that none could decode.
        NoData: the tables cannot answer for this worker.
    """
    chunk = context_tokens or load.isl
    prompts = -(-chunk // load.isl)
    if prompts >= max(batch, 2):
        raise ConfigError(
            f"--context-tokens: {chunk} tokens are {prompts} prompts of {load.isl}, and {batch} requests are in flight",
            hint="take fewer context tokens or a larger --batch",
        )
    points = Points(np.array([batch]), np.array([chunk]), np.zeros(1))
    rates = evaluate_points(worker, load, points)
    ttft, tpot, rate = (float(each[0]) for each in rates)
    held = worker.memory(load, role="agg", batch=batch, context_tokens=chunk)
    system = worker.performance.system
    done = tuple(steps(worker, load, batch=batch, chunk=chunk))
    tokens = rate * (load.osl if "count-output-alike" in worker.estimator.corrections else load.osl - 1)
    return Estimate(
        label=worker.label,
        system=system.name,
        backend=worker.backend,
        version=worker.version,
        split=worker.split,
        quantization=worker.quantization,
        load=load,
        batch=batch,
        context_tokens=chunk,
        steps=done,
        memory={name: float(value) for name, value in held._asdict().items()},
        capacity=system.memory_capacity / GIB,
        fits=bool(worker.room(load, tuning, role="agg", batch=batch, context_tokens=chunk)[1]),
        ttft=ttft,
        tpot=tpot,
        prefill_share=max(1 - float(undisturbed(worker, load, points.batch)[0]) / tpot, 0.0) if tpot else 0.0,
        request_latency=ttft + tpot * (load.osl - 1),
        concurrency=batch * worker.split.dp * worker.split.pp,
        requests_per_s=rate,
        tokens_per_s=tokens,
        tokens_per_s_gpu=tokens / worker.split.gpus,
        tokens_per_s_user=1000 / tpot if tpot else 0.0,
        uncertainty=system.uncertainty if system.estimated else 0.0,
        **sureness(worker, load, points.batch, rates.ttft, rates.tpot)[0],
        notes=worker.performance.notes,
    )


def steps(
    worker: Worker, load: Load, *, batch: int, chunk: int, names: Sequence[StepName] = STEPS
) -> Iterable[Step]:
    """Yield the kinds of steps that a worker does, operation by operation.

    Raises:
        NoData: the tables cannot answer for this worker.
    """
    generating = max(batch - -(-chunk // load.isl), 0)
    known = {"host": "host", **dict(kinds((*worker.graph.context, *worker.graph.generation)))}
    requests_of: dict[StepName, int] = {"prefill": 1, "mixed": generating, "decode": batch}
    system = worker.performance.system
    limits: dict[Bound, Worker] = {
        "compute": _limited(worker, replace(system, memory_bandwidth=_ENDLESS)),
        "memory": _limited(worker, replace(system, flops=dict.fromkeys(system.flops, _ENDLESS))),
    }
    for name in names:
        requests = requests_of[name]
        took = worker.breakdown(name, load, batch=requests, context_tokens=chunk)
        ideal = {
            bound: limit.breakdown(name, load, batch=requests, context_tokens=chunk)
            for bound, limit in limits.items()
        }
        parts = tuple(
            _part(
                each,
                known.get(each, "memory"),
                ms,
                {bound: of[each] for bound, of in ideal.items() if each in of},
            )
            for each, ms in took.items()
            if ms
        )
        yield Step(name=name, ms=sum(part.ms for part in parts), parts=parts)


class _Limit:
    """Hardware that has only one limit, asked about what the tables answer for; 0 where there is no formula."""

    def __init__(self, tables: Performance, system: System) -> None:
        self.system = system
        self.notes: tuple[str, ...] = ()
        self._tables = tables
        self._light = SpeedOfLight(system)

    def latency(self, operation: Leaf, at: Query) -> Floats:
        """Return ms of one occurrence."""
        known = self._tables.latency(operation, at)  # so that a fallback falls back here too
        try:
            return self._light.latency(operation, at)
        except NoData:
            return np.zeros(known.shape)


def _limited(worker: Worker, system: System) -> Worker:
    """Return the same worker on hardware with other limits."""
    return worker.changed(performance=_Limit(worker.performance, system), host=Host())


def _part(name: str, kind: Kind, ms: float, ideal: dict[Bound, float]) -> Part:
    bound: Bound = max(ideal, key=lambda each: ideal[each]) if ideal else "memory"
    return Part(
        name=name,
        kind=kind,
        ms=ms,
        ideal=max(ideal.values(), default=0.0),
        bound=kind if kind in {"link", "host"} else bound,
    )


def kinds(operations: Iterable[Operation]) -> Iterable[tuple[str, Kind]]:
    """Yield the kind of every operation by its name, those inside chains too."""
    for operation in operations:
        match operation:
            case Overlap():
                yield operation.name, "experts"
            case Fallback():
                yield from kinds((*operation.primary, *operation.otherwise))
            case _:
                yield operation.name, kind_of(operation)
