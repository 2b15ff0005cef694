"""Answer one experiment: price its workers, sweep them, rank what was found, and say why nothing was."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from aegis.planner.answer import ModeAnswer
from aegis.planner.estimate.worker import Worker
from aegis.planner.lanes import lanes_of
from aegis.planner.models.build import build_graph
from aegis.planner.models.families.step import Lanes
from aegis.planner.models.limits import SplitError
from aegis.planner.report.words import between
from aegis.planner.search.pareto import frontier
from aegis.planner.search.pick import Picked, excess, known, pick
from aegis.planner.shortfall import shortfall
from aegis.planner.sweep import sweep
from aegis.planner.systems import load_system
from aegis.planner.tables.store import open_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.answer import Candidate
    from aegis.planner.calibrate import Calibrations
    from aegis.planner.operations import Performance
    from aegis.planner.problem import Parallel, WorkerSearch
    from aegis.planner.silicon.measurements import Figure, Measurements
    from aegis.planner.task import Experiment

BY_BACKEND = "tokens/s/gpu by backend"  # a note that compares
_DISAGG_GPUS = 2  # a prefill and a decode worker at least


class _Figures(NamedTuple):
    """What answers for a system and an engine, and which kernels of attention the engine runs."""

    performance: Performance
    lanes: Lanes


class Parts:
    """What experiments have in common: tables that are open, and workers that are priced."""

    def __init__(self) -> None:
        self._figures: dict[Any, _Figures] = {}
        self._measurements: dict[Any, Measurements] = {}
        self._workers: dict[Any, Worker | SplitError] = {}

    def performance(self, search: WorkerSearch, experiment: Experiment) -> Performance:
        """Return what answers for the operations of some workers."""
        return self._of(search, experiment).performance

    def _of(self, search: WorkerSearch, experiment: Experiment) -> _Figures:
        at = (search.system, search.backend, search.version, search.node_gpus)
        key = (*at, experiment.estimator, experiment.database_mode, experiment.calibration)
        if key not in self._figures:
            self._figures[key] = _calibrated(_figures(search, experiment), search, experiment)
        return self._figures[key]

    def workers(self, search: WorkerSearch, experiment: Experiment) -> list[Worker]:
        """Return the workers of all splits that can be built.

        Raises:
            SplitError: none can; it says why the last one cannot.
        """
        found = [self._worker(search, split, experiment) for split in search.splits]
        built = [each for each in found if isinstance(each, Worker)]
        if not built:
            raise next(each for each in reversed(found) if isinstance(each, SplitError))
        return built

    def _worker(self, search: WorkerSearch, split: Parallel, experiment: Experiment) -> Worker | SplitError:
        figures = self._of(search, experiment)
        at = (
            experiment.model,
            search.quantization,
            split,
            search.backend,
            experiment.mtp,
            experiment.estimator,
        )
        key = (id(figures), *at)
        if key not in self._workers:
            try:
                self._workers[key] = self._corrected(_worker(search, split, experiment, figures), experiment)
            except SplitError as error:
                self._workers[key] = error
        return self._workers[key]

    def _corrected(self, worker: Worker, experiment: Experiment) -> Worker:
        """Return a worker that takes as long as measured deployments do, where the estimator says so."""
        asked = experiment.estimator.corrections
        if "steps-as-measured" not in asked:
            return worker
        from aegis.planner.calibrate import chosen  # noqa: PLC0415 - start-up time
        from aegis.planner.silicon.fitted import fitted  # noqa: PLC0415
        from aegis.planner.silicon.measurements import Measurements  # noqa: PLC0415
        from aegis.planner.silicon.mechanism import as_measured, class_of  # noqa: PLC0415

        known = fitted()
        kind = class_of(worker.performance.system)
        worker = as_measured(worker, known.mechanism(worker.backend, kind, worker.version))
        name = worker.performance.system.name
        if factors := chosen(experiment.calibration, name, worker.backend, experiment.model_name):
            worker = worker.changed(host=factors.host(worker.host))
        if "deployments-as-measured" not in asked:
            return worker
        if experiment.calibration not in self._measurements:
            self._measurements[experiment.calibration] = Measurements(*_measured(experiment.calibration))
        return worker.changed(residual=self._measurements[experiment.calibration])


@cache
def _measured(calibrations: Calibrations) -> tuple[Figure, Figure]:
    """Return what measured deployments leave over of TTFT and TPOT: the same for all systems and engines that are asked for."""
    from aegis.planner.calibrate import own_rows  # noqa: PLC0415 - start-up time
    from aegis.planner.silicon.fitted import fitted  # noqa: PLC0415
    from aegis.planner.silicon.measurements import Figure  # noqa: PLC0415

    known, (ttft, tpot) = fitted(), own_rows(calibrations)
    return Figure(known.ttft, ttft), Figure(known.tpot, tpot)


def _figures(search: WorkerSearch, experiment: Experiment) -> _Figures:
    """Open what is known of a system: its tables of the right time, or the formula where it has none."""
    guide = experiment.estimator.rules == "guide"
    per_token = "attention-extras-per-token" in experiment.estimator.corrections
    system = load_system(search.system, era="guide" if guide else "current")
    if search.node_gpus is not None:
        system = replace(system, gpus_per_node=search.node_gpus)
    if search.version is None and experiment.database_mode != "SOL":
        from aegis.planner.perf.analytic import Analytic  # noqa: PLC0415 - start-up time

        return _Figures(Analytic(system, search.backend, extras_per_token=per_token), Lanes())
    tables = open_tables(search.system, search.backend, search.version, era="guide" if guide else "current")
    if guide:
        from aegis.planner.perf.guide import GuideTables  # noqa: PLC0415 - start-up time

        return _Figures(GuideTables(system, tables, exact=experiment.estimator.exact), Lanes())
    from aegis.planner.perf.measured import Measured  # noqa: PLC0415 - start-up time

    measured = Measured(system, tables, mode=experiment.database_mode, extras_per_token=per_token)
    if not _reaches(experiment):
        return _Figures(measured, lanes_of(tables, system))
    from aegis.planner.perf.reach import Reach  # noqa: PLC0415 - start-up time

    reach = Reach(measured, tables, search.backend, extras_per_token=per_token)
    return _Figures(reach, lanes_of(tables, system))


def _reaches(experiment: Experiment) -> bool:
    """Tell whether what the rules of 0.12.0 refuse is estimated."""
    return experiment.database_mode == "HYBRID" and "reach-past-tables" in experiment.estimator.corrections


def _calibrated(figures: _Figures, search: WorkerSearch, experiment: Experiment) -> _Figures:
    if not experiment.calibration:
        return figures
    from aegis.planner.calibrate import Calibrated, chosen  # noqa: PLC0415 - start-up time

    factors = chosen(experiment.calibration, search.system, search.backend, experiment.model_name)
    return figures._replace(performance=Calibrated(figures.performance, factors))


def _worker(search: WorkerSearch, split: Parallel, experiment: Experiment, figures: _Figures) -> Worker:
    graph = build_graph(
        experiment.model,
        split,
        search.quantization,
        system=figures.performance.system,
        backend=search.backend,
        rules=experiment.estimator.rules,
        mtp=experiment.mtp,
        lanes=figures.lanes,
        corrections=experiment.estimator.corrections,
        wide=search.wide,
        reach=_reaches(experiment),
    )
    return Worker(
        graph=graph,
        split=split,
        quantization=search.quantization,
        performance=figures.performance,
        backend=search.backend,
        version=search.version or "",
        estimator=experiment.estimator,
        mtp=experiment.mtp,
    )


def answer(experiment: Experiment, parts: Parts) -> ModeAnswer:
    """Return the best configurations of an experiment; where there are none, `why_none` says why."""
    if experiment.mode == "disagg" and experiment.total_gpus < _DISAGG_GPUS:
        return _none(experiment, f"prefill and decode take {_DISAGG_GPUS} GPUs at least")
    candidates: list[Candidate] = []
    pools: list[list[list[Worker]]] = []
    lacking = ""
    for search in experiment.searches:
        try:
            pool = [parts.workers(kind, experiment) for kind in search]
        except SplitError as error:
            lacking = error.message
            continue
        pools.append(pool)
        candidates += sweep(experiment, pool, experiment.targets)
    front = frontier(candidates)
    guide = experiment.estimator.rules == "guide"
    picked = _ranked(experiment, front if guide else candidates)
    best, why = picked.best, None
    if not best or not picked.meets_targets:
        why = shortfall(experiment, pools, candidates) if pools else lacking
        best = _nearest(experiment, candidates) if best and experiment.estimator.corrections else best
    performances = [parts.performance(kind, experiment) for search in experiment.searches for kind in search]
    notes = [*experiment.notes, *(note for each in performances for note in each.notes)]
    return ModeAnswer(
        name=experiment.name,
        mode=experiment.mode,
        candidates=tuple(candidates),
        frontier=front,
        best=best,
        meets_targets=picked.meets_targets,
        why_none=why,
        notes=tuple(dict.fromkeys([*notes, *_by_backend(experiment, candidates)])),
    )


def _ranked(experiment: Experiment, candidates: Sequence[Candidate]) -> Picked:
    """Rank candidates; aiconfigurator 0.12.0 ranks each backend alone and joins them, those that miss the targets too."""
    backends = dict.fromkeys(each.workers[0].backend for each in candidates)
    if experiment.estimator.corrections or len(backends) == 1:
        return _picked(experiment, candidates, experiment.top_n)
    alone = [
        _picked(
            experiment, [each for each in candidates if each.workers[0].backend == backend], experiment.top_n
        )
        for backend in backends
    ]
    joined = [each for one in alone for each in one.best]
    joined.sort(key=lambda each: -each.cluster_throughput(experiment.total_gpus))
    return Picked(tuple(joined[: experiment.top_n]), meets_targets=any(one.meets_targets for one in alone))


def _picked(experiment: Experiment, candidates: Sequence[Candidate], top_n: int) -> Picked:
    return pick(
        candidates,
        total_gpus=experiment.total_gpus,
        targets=experiment.targets,
        top_n=top_n,
        rules=experiment.estimator.rules,
    )


def _nearest(experiment: Experiment, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return what misses the targets by least, one of each split; aiconfigurator 0.12.0 has the most throughput here."""
    there = [each for each in candidates if each.replicas(experiment.total_gpus)]
    best: dict[Parallel, Candidate] = {}
    for each in sorted(there, key=lambda each: (excess(each, experiment.targets), -each.tokens_per_s_gpu)):
        best.setdefault(each.workers[-1].parallel, each)
    return tuple(best.values())[: experiment.top_n]


def _none(experiment: Experiment, why: str) -> ModeAnswer:
    return ModeAnswer(
        name=experiment.name,
        mode=experiment.mode,
        meets_targets=False,
        why_none=why,
        notes=experiment.notes,
    )


def _by_backend(experiment: Experiment, candidates: Sequence[Candidate]) -> list[str]:
    """Return a line with the best of each backend, where several were weighed."""
    backends = [search[0].backend for search in experiment.searches]
    if len(backends) < 2:  # noqa: PLR2004 - one needs no comparison
        return []
    said = []
    for backend in backends:
        own = [each for each in candidates if each.workers[0].backend == backend]
        picked = _picked(experiment, own, 1)
        sure = between(*known(picked.best[0], experiment.total_gpus)) if picked.best else ""
        best = f"{picked.best[0].cluster_throughput(experiment.total_gpus):.2f}" if picked.best else "nothing"
        best += f" ({sure})" if sure else ""
        said.append(f"{backend} {best}{'' if picked.meets_targets or not picked.best else ' (misses)'}")
    return [f"{experiment.name}, {BY_BACKEND}: {', '.join(said)}"]
