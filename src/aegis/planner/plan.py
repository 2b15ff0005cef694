"""Answer questions: open the tables, price every split once, sweep, rank."""

from __future__ import annotations

import math
import time
from numbers import Integral
from typing import TYPE_CHECKING, Any, get_args

from msgspec import Struct

from aegis.errors import AegisError, ConfigError
from aegis.planner import defaults
from aegis.planner.estimator import ESTIMATORS
from aegis.planner.problem import BACKENDS, DatabaseMode, Load, Mtp, Targets, Tuning
from aegis.planner.search.pick import Known, by_confidence, excess
from aegis.planner.solve import Parts, answer
from aegis.planner.task import LOAD, TARGETS, TOP_N, Question, WorkerQuestion
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd

    from aegis.planner.answer import Candidate, ModeAnswer
    from aegis.planner.estimator import Estimator
    from aegis.planner.problem import Backend, ServingMode
    from aegis.planner.task import Experiment


class Plan(Struct, frozen=True, kw_only=True):
    """Experiments and their answers, side by side."""

    experiments: tuple[Experiment, ...]
    answers: tuple[ModeAnswer, ...]  # one for each experiment
    compared: bool = False  # aggregated against disaggregated, for one question
    seconds: float = 0.0  # that it took

    @property
    def chosen(self) -> int | None:
        """Index of the best experiment: with the most output tokens/s of all GPUs, or if none meets its targets, nearest."""
        there = [index for index, each in enumerate(self.answers) if each.best]
        meeting = [index for index in there if self._meets(index)]
        if meeting:
            return by_confidence(meeting, self.known)[0]
        return min(there, key=self._excess, default=None)

    def _meets(self, index: int) -> bool:
        corrected = self.experiments[index].estimator.corrections
        return self.answers[index].meets_targets or not corrected  # aiconfigurator 0.12.0 compares all alike

    def _excess(self, index: int) -> float:
        return excess(self.answers[index].best[0], self.experiments[index].targets)

    @property
    def best(self) -> Candidate | None:
        """The configuration to take."""
        return None if self.chosen is None else self.answers[self.chosen].best[0]

    @property
    def meets_targets(self) -> bool:
        """Whether any experiment has a configuration within its targets."""
        return any(each.best and each.meets_targets for each in self.answers)

    @property
    def ratio(self) -> float | None:
        """Throughput of disaggregated over aggregated serving; None unless both were asked for and found."""
        by_mode = {each.mode: self.throughput(index) for index, each in enumerate(self.answers)}
        if not self.compared or not by_mode.get("agg") or "disagg" not in by_mode:
            return None
        return by_mode["disagg"] / by_mode["agg"] or None

    def throughput(self, index: int) -> float:
        """Return output tokens/s of each of all GPUs of an experiment's best configuration, 0 if there is none."""
        best = self.answers[index].best
        return best[0].cluster_throughput(self.experiments[index].total_gpus) if best else 0.0

    def known(self, index: int) -> Known:
        """Return the throughput of an experiment, and how well it is known."""
        best = self.answers[index].best
        return Known(self.throughput(index), best[0].spread if best else 0.0)

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return ranked rows by the name of the experiment, with the columns of the guide's tables."""
        from aegis.planner.report.document import rows  # noqa: PLC0415 - the other way round at import

        pairs = zip(self.experiments, self.answers, strict=True)
        return {each.name: rows(experiment, each.best) for experiment, each in pairs}

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each ranked configuration, as `to_dict`, with the columns `experiment` and `rank`.

        Raises:
            AegisError: pandas is not installed.
        """
        try:
            import pandas  # noqa: ICN001, PLC0415 - optional, and slow to import
        except ImportError:
            raise AegisError("pandas is not installed", hint="pip install pandas") from None
        return pandas.DataFrame(
            [
                {"experiment": name, "rank": rank, **row}
                for name, rows in self.to_dict().items()
                for rank, row in enumerate(rows, start=1)
            ]
        )

    def _repr_html_(self) -> str:
        from aegis.planner.report.table import html  # noqa: PLC0415 - only in a notebook

        return html(self)


def plan(
    model: str,
    total_gpus: int,
    system: str,
    *,
    decode_system: str | None = None,
    backend: str | None = None,
    backend_version: str | None = None,
    isl: int = LOAD.isl,
    osl: int = LOAD.osl,
    ttft: float | None = None,
    tpot: float = TARGETS.tpot,
    request_latency: float | None = None,
    prefix: int = 0,
    top_n: int = TOP_N,
    strict: bool = False,
    estimator: str | Estimator = "aegis",
    database_mode: DatabaseMode = "SILICON",
    mtp: Mtp | None = None,
    free_gpu_memory_fraction: float | None = None,
) -> Plan:
    """Compare aggregated with disaggregated serving of a model on so many GPUs.

    Args:
        model: a name of the guide (QWEN3_32B), a Hugging Face id, or the path of a config.json.
        total_gpus: GPUs there are.
        system: what they are (`aegis plan tables list`).
        decode_system: another system for the decode workers of disaggregated serving.
        backend: trtllm, vllm or sglang; "any" weighs all that have tables. Default: trtllm, or what has tables.
        backend_version: of the tables; default: the newest.
        isl: input tokens of a request.
        osl: output tokens of a request.
        ttft: target of the time to the first token, ms (1000; with `request_latency`: none).
        tpot: target of the time per further token, ms.
        request_latency: target of the whole request, ms; it replaces `tpot`.
        prefix: input tokens that the prefix cache holds already.
        top_n: configurations that are ranked of each mode.
        strict: a configuration that misses a target is no answer.
        estimator: "aegis", "aic-0.12" or "guide", or one with corrections of your own.
        database_mode: SILICON, HYBRID, EMPIRICAL or SOL.
        mtp: multi-token prediction; default: none, or what the guide's rules take for the model.
        free_gpu_memory_fraction: of the memory that the KV cache may take; default: the backend's own.

    Raises:
        ConfigError: what is asked cannot be; all problems at once.
    """
    counts = {"total_gpus": total_gpus, "isl": isl, "osl": osl, "prefix": prefix, "top_n": top_n}
    for name, value in counts.items():
        if not isinstance(value, Integral):
            raise ConfigError(f"{name}: {value!r} is no whole number")
    if database_mode not in get_args(DatabaseMode):
        hint = f"one of {', '.join(get_args(DatabaseMode))}"
        raise ConfigError(f"unknown database_mode `{database_mode}`", hint=hint)
    return run(
        defaults.fill(
            questions(
                model,
                total_gpus,
                system,
                decode_system=decode_system,
                backend=backend,
                backend_version=backend_version,
                load=Load(isl=isl, osl=osl, prefix=prefix),
                targets=targets_of(ttft, tpot, request_latency, strict=strict),
                tuning=Tuning(free_memory_fraction=free_gpu_memory_fraction),
                mtp=mtp,
                top_n=top_n,
                estimator=estimator_of(estimator),
                database_mode=database_mode,
            )
        ),
        compared=True,
    )


def targets_of(
    ttft: float | None, tpot: float, request_latency: float | None, *, strict: bool = False
) -> Targets:
    """Return targets; ms to the first token default to the guide's, or to none where the whole request has a target."""
    if ttft is None:
        ttft = TARGETS.ttft if request_latency is None else math.inf
    return Targets(ttft=ttft, tpot=tpot, request_latency=request_latency, strict=strict)


def estimator_of(name: str | Estimator) -> Estimator:
    """Return an estimator by name.

    Raises:
        ConfigError: unknown name.
    """
    if not isinstance(name, str):
        return name
    if name not in ESTIMATORS:
        hint = did_you_mean(name, ESTIMATORS) or f"one of {', '.join(ESTIMATORS)}"
        raise ConfigError(f"unknown estimator `{name}`", hint=hint)
    return ESTIMATORS[name]


def questions(
    model: str,
    total_gpus: int,
    system: str,
    *,
    decode_system: str | None,
    backend: str | None,
    backend_version: str | None,
    node_gpus: int | None = None,
    where: Callable[[str], str] = str,
    **shared: Any,
) -> tuple[Question, ...]:
    """Return the two questions of a comparison, in the order in which the guide shows them.

    Raises:
        ConfigError: unknown backend.
    """
    names = {name: (name,) for name in BACKENDS} | dict.fromkeys(("any", "auto"), BACKENDS)
    if backend is not None and backend not in names:
        hint = did_you_mean(backend, names) or f"one of {', '.join(names)}"
        raise ConfigError(f"unknown backend `{backend}`", hint=hint)
    backends: tuple[Backend, ...] = names[backend] if backend else ()

    def worker(of: str) -> WorkerQuestion:
        return WorkerQuestion(
            model=model, system=of, backends=backends, version=backend_version, node_gpus=node_gpus
        )

    workers: dict[ServingMode, tuple[WorkerQuestion, ...]] = {
        "disagg": (worker(system), worker(decode_system or system)),
        "agg": (worker(system),),
    }
    return tuple(
        Question(name=mode, mode=mode, total_gpus=total_gpus, workers=kinds, where=where, **shared)
        for mode, kinds in workers.items()
    )


def run(
    experiments: Iterable[Experiment],
    *,
    compared: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Plan:
    """Answer experiments; what they have in common (tables, workers) is priced once.

    Args:
        experiments: what to answer, in order.
        compared: two modes of one question.
        tell: is told what is done next.

    Raises:
        PlacementError: a model fits on no split of any experiment.
        TableError: a file of tables is damaged.
    """
    started = time.perf_counter()
    experiments = tuple(experiments)
    parts = Parts()
    answers = []
    for number, experiment in enumerate(experiments, start=1):
        if tell:
            tell(f"{experiment.name} ({number} of {len(experiments)})")
        answers.append(answer(experiment, parts))
    return Plan(
        experiments=experiments,
        answers=tuple(answers),
        compared=compared,
        seconds=time.perf_counter() - started,
    )
