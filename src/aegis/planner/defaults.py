"""Fill the gaps of questions: systems, tables, number formats, splits. What cannot be is told, all of it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs
from msgspec.structs import replace

from aegis.errors import ConfigError, DeploymentError, Problem
from aegis.planner.checks import check, remarks
from aegis.planner.models.mtp import default_mtp
from aegis.planner.models.quantize import explain_quantization, has_in
from aegis.planner.models.resolve import find_model, leaves_formats_open
from aegis.planner.models.splits import ONE, Lists, default_lists, splits_of
from aegis.planner.models.wide import spreads, wide_experts
from aegis.planner.problem import BACKENDS, Replica, WorkerSearch
from aegis.planner.systems import load_system, system_names
from aegis.planner.tables.store import open_tables, shipped
from aegis.planner.tables.versions import version_order
from aegis.planner.task import Experiment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis.planner.answer import Role
    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.problem import Backend, Parallel, Quantization, WideExperts
    from aegis.planner.systems import Era, System
    from aegis.planner.task import Question, WorkerQuestion

# A system has another name in the tables of the guide's time.
_ALIASES: dict[str, dict[str, str]] = {
    "current": {"gb200_sxm": "gb200", "gb300_sxm": "gb300"},
    "guide": {"gb200": "gb200_sxm"},
}
_WIDE_ATTENTION = "fp8_block"  # a format of attention that files for wide expert parallelism name
_REPLICA_STEP = 8  # GPUs: larger bounds than the sizes that are tried extend these by so many
_WIDE_GPUS = 512  # of a replica, where experts are spread over many nodes


def fill(questions: Iterable[Question]) -> tuple[Experiment, ...]:
    """Return the experiments that the questions ask for.

    Raises:
        DeploymentError: with everything that is wrong in any of them.
    """
    problems: list[Problem] = []
    experiments: list[Experiment] = []
    for question in questions:
        wrong = list(check(question))
        if not wrong:
            try:
                experiments.append(_experiment(question))
            except DeploymentError as error:
                wrong = list(error.problems)
        problems += wrong
    if problems:
        raise DeploymentError(list(dict.fromkeys(problems)))
    return tuple(experiments)


class _Kind(NamedTuple):
    """What is known of one kind of workers before backends are told apart."""

    asked: WorkerQuestion
    role: Role
    model: ModelShape
    system: System
    backends: dict[Backend, list[str]]  # with the versions of their tables, oldest first; none if estimated


def _experiment(question: Question) -> Experiment:
    """Fill one question.

    Raises:
        DeploymentError: a model, a system, tables, formats or splits are not there.
    """
    roles: tuple[Role, ...] = ("agg",) if question.mode == "agg" else ("prefill", "decode")
    problems: list[Problem] = []
    notes = list(question.notes)
    kinds = []
    for role, asked in zip(roles, question.workers, strict=True):
        kind = _kind(question, role, asked, problems)
        if kind:
            kinds.append(kind)
    if problems:
        raise DeploymentError(problems)
    model = kinds[0].model
    _same_model(question, kinds, problems)
    _within_context(question, model, problems)
    notes += remarks(question, model)
    searches = tuple(
        tuple(_search(question, kind, backend, notes, problems) for kind in kinds)
        for backend in _backends(question, kinds, notes, problems)
    )
    wide = question.replica is None and any(spreads(each) for search in searches for each in search)
    if problems:
        raise DeploymentError(list(dict.fromkeys(problems)))
    return Experiment(
        name=question.name,
        mode=question.mode,
        model_name=question.workers[0].model,
        model=model,
        total_gpus=question.total_gpus,
        load=question.load,
        targets=question.targets,
        searches=searches,
        replica=_replica(question, wide=question.wide_ep or wide),
        tuning=question.tuning,
        mtp=question.mtp or default_mtp(model, question.estimator.rules),
        wide_ep=question.wide_ep,
        estimator=question.estimator,
        database_mode=question.database_mode,
        calibration=question.calibration,
        top_n=question.top_n,
        notes=tuple(dict.fromkeys(notes)),
    )


def _kind(question: Question, role: Role, asked: WorkerQuestion, problems: list[Problem]) -> _Kind | None:
    """Look up the model and the system of one kind of workers."""
    era = _era(question)
    found: dict[str, ModelShape | System] = {}
    name = _ALIASES[era].get(asked.system, asked.system)
    first = question.workers[0]
    for what, look in (
        ("model", lambda: find_model(asked.model)),
        ("system", lambda: _system(name, era, asked.node_gpus)),
    ):
        try:
            found[what] = look()
        except ConfigError as error:
            own = role == "decode" and getattr(asked, what) != getattr(first, what)
            where = question.where(f"decode.{what}" if own else what)
            problems.append(Problem(where, error.message, error.hint))
    if len(found) < 2:  # noqa: PLR2004 - both or none
        return None
    tables = _versions(name, era)
    return _Kind(asked, role, found["model"], found["system"], tables)  # type: ignore[arg-type]


def _system(name: str, era: Era, node_gpus: int | None) -> System:
    """Return a system by name, with nodes of so many GPUs.

    Raises:
        ConfigError: it is unknown, or nobody measured it in the guide's time.
    """
    there = system_names(era=era)
    if era == "guide" and name not in there and name in system_names():
        hint = f"there are some of {', '.join(there)}; --estimator aegis knows {name}"
        raise ConfigError(f"no tables of the guide's time of {name}", hint=hint)
    system = load_system(name, era=era)
    return system if node_gpus is None else replace(system, gpus_per_node=node_gpus)


def _versions(system: str, era: Era) -> dict[Backend, list[str]]:
    """Return the versions of the tables of a system by backend, the newest last."""
    there: dict[Backend, list[str]] = {}
    for info in shipped(eras=(era,)):
        if info.system == system and info.backend in BACKENDS:
            there.setdefault(info.backend, []).append(info.version)
    return {backend: sorted(there[backend], key=version_order) for backend in BACKENDS if backend in there}


def _backends(
    question: Question, kinds: list[_Kind], notes: list[str], problems: list[Problem]
) -> list[Backend]:
    """Return the backends that are weighed: those that are asked for and can be."""
    possible = [backend for backend in BACKENDS if all(_runs(kind, backend, question) for kind in kinds)]
    asked = kinds[0].asked.backends
    if not asked:
        default = possible[:1]
        if default and default != ["trtllm"]:
            notes.append(f"{kinds[0].system.name}: no tables of trtllm; {default[0]} is taken")
        asked = tuple(default) or ("trtllm",)
    chosen = [backend for backend in asked if backend in possible]
    if not chosen:
        for kind in kinds:
            if _runs(kind, asked[0], question):
                continue
            when = " in the guide's time" if _era(question) == "guide" else ""
            estimated = f"{' or '.join(asked)} does not run on it; take vllm or sglang"
            problems.append(
                Problem(
                    question.where("backend"),
                    f"{kind.system.name} has no tables of {' or '.join(asked)}{when}",
                    f"it has tables of: {', '.join(kind.backends)}" if kind.backends else estimated,
                )
            )
    return chosen


def _runs(kind: _Kind, backend: Backend, question: Question) -> bool:
    """Tell whether there are figures for a backend on a system."""
    if kind.system.estimated or question.database_mode == "SOL":
        return backend != "trtllm" or kind.system.sm_version > 0  # TensorRT-LLM is for NVIDIA's GPUs
    return backend in kind.backends


def _search(
    question: Question, kind: _Kind, backend: Backend, notes: list[str], problems: list[Problem]
) -> WorkerSearch:
    """Return the workers of one kind on one backend."""
    version = _version(kind, backend, notes)
    default, said = explain_quantization(
        kind.model,
        system=kind.system,
        backend=backend,
        rules=question.estimator.rules,
        has=has_in(open_tables(kind.system.name, backend, version, era=_era(question))) if version else None,
        role=kind.role,
        open_formats=leaves_formats_open(kind.asked.model),
    )
    asked = {name: value for name, value in structs.asdict(kind.asked.formats).items() if value is not None}
    if asked.get("fmha") == _WIDE_ATTENTION and default.fmha != _WIDE_ATTENTION:
        notes.append(f"attention in {_WIDE_ATTENTION} is not measured: {default.fmha} is taken")
        del asked["fmha"]
    notes += [each for each in said if ("gemm" if each.startswith("weights") else "fmha") not in asked]
    quantization = replace(default, **asked)
    wide = _wide(question, kind, backend, version, quantization)
    splits = _splits(question, kind, backend, tuple(each.gpus for each in wide if each.nodes > 1))
    if not splits:
        where = question.where(f"{kind.role}.gpus")
        problems.append(
            Problem(
                where,
                f"no split of {kind.model.name} has a size that is allowed, on at most {question.total_gpus} GPUs",
                "tp * pp * dp has to be one of the GPUs per worker, and tp * dp = moe_tp * moe_ep for experts",
            )
        )
    return WorkerSearch(
        system=kind.system.name,
        backend=backend,
        version=version,
        quantization=quantization,
        splits=splits,
        node_gpus=kind.asked.node_gpus,
        wide=wide,
    )


def _wide(
    question: Question, kind: _Kind, backend: Backend, version: str | None, quantization: Quantization
) -> tuple[WideExperts, ...]:
    """Return the sizes of groups of GPUs that wide experts were measured on."""
    if version is None or question.estimator.rules == "guide":
        return ()
    tables = open_tables(kind.system.name, backend, version)
    return wide_experts(kind.model, quantization.moe, tables=tables, system=kind.system)


def _splits(
    question: Question, kind: _Kind, backend: Backend, measured: tuple[int, ...]
) -> tuple[Parallel, ...]:
    """Return all splits of the sizes that are asked for, the defaults for the others."""
    rules = question.estimator.rules
    default = default_lists(
        kind.model,
        system=kind.system,
        backend=backend,
        rules=rules,
        role=kind.role,
        total_gpus=question.total_gpus,
        wide_ep=question.wide_ep,
        measured=measured,
    )
    if question.complete:
        default = Lists(gpus=default.gpus, tp=ONE)
    asked = {name: value for name, value in structs.asdict(kind.asked.lists).items() if value is not None}
    lists = default._replace(**asked)
    lists = lists._replace(gpus=tuple(each for each in lists.gpus if each <= question.total_gpus))
    return splits_of(lists, has_experts=kind.model.has_experts, backend=backend, rules=rules)


def _version(kind: _Kind, backend: Backend, notes: list[str]) -> str | None:
    """Return the version of the tables that answer: the one asked for, or the nearest there is."""
    there = kind.backends.get(backend)
    if not there:
        return None
    asked = kind.asked.version
    if asked is None:
        return there[-1]
    if asked in there:
        return asked
    newer = [each for each in there if version_order(each) >= version_order(asked)]
    nearest = newer[0] if newer else there[-1]
    notes.append(f"no tables of {backend} {asked} on {kind.system.name}: those of {nearest} are taken")
    return nearest


def _same_model(question: Question, kinds: list[_Kind], problems: list[Problem]) -> None:
    """Check that prefill and decode workers serve one model, in whatever number formats."""
    shapes = {replace(kind.model, name="", checkpoint=type(kind.model.checkpoint)()) for kind in kinds}
    if len(shapes) > 1:
        names = " and ".join(kind.asked.model for kind in kinds)
        problems.append(
            Problem(
                question.where("decode.model"), f"{names} are different models", "one model, in any formats"
            )
        )


def _within_context(question: Question, model: ModelShape, problems: list[Problem]) -> None:
    load = question.load
    if model.context and load.isl + load.osl > model.context:
        problems.append(
            Problem(
                question.where("isl"),
                f"{load.isl} + {load.osl} tokens are beyond the {model.context} that {model.name} was made for",
                f"isl + osl is at most {model.context}",
            )
        )


def _replica(question: Question, *, wide: bool) -> Replica:
    """Return the bounds of a replica; a larger bound extends the sizes that are tried."""
    default = Replica(gpus=tuple(range(1, _WIDE_GPUS + 1)), max_gpus=_WIDE_GPUS) if wide else Replica()
    asked = question.replica
    if asked is None:
        return default
    usual = Replica()
    replica = Replica(
        gpus=default.gpus if asked.gpus == usual.gpus else asked.gpus,
        max_gpus=default.max_gpus if asked.max_gpus == usual.max_gpus else asked.max_gpus,
        max_prefill_workers=asked.max_prefill_workers,
        max_decode_workers=asked.max_decode_workers,
    )
    largest = max(replica.gpus)
    more = range(
        largest + _REPLICA_STEP, (replica.max_gpus or question.total_gpus) + _REPLICA_STEP, _REPLICA_STEP
    )
    return replace(replica, gpus=(*replica.gpus, *more))


def _era(question: Question) -> Era:
    return "guide" if question.estimator.rules == "guide" else "current"
