"""Read a file of experiments."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from aegis.errors import ConfigError, DeploymentError, Problem
from aegis.planner.estimator import CORRECTED
from aegis.planner.experiment_keys import DIMENSIONS, PAIR, PROFILES, SECTIONS, UNUSED, keys_of
from aegis.planner.models.formats import format_name
from aegis.planner.problem import BACKENDS, Load, Mtp, Replica, Targets, Tuning
from aegis.planner.task import LOAD, TARGETS, TOP_N, Formats, Lists, Question, WorkerQuestion
from aegis.spec.check import check_mapping, value_at
from aegis.spec.document import read_document
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path as FilePath

    from aegis.planner.estimator import Estimator
    from aegis.spec.document import Document, Path

NAMES = "exps"  # which experiments are run, in this order
MISTYPED = {"ture": True, "flase": False}  # an example of the guide's time has `ture`
FORMATS = ("gemm", "moe", "kv_cache", "fmha", "comm")


class Given(NamedTuple):
    """What an experiment says: values and where they stand, by (role, name)."""

    document: Document
    path: Path
    values: dict[tuple[str, str], Any]
    paths: dict[tuple[str, str], Path]
    notes: list[str]

    def get(self, name: str, role: str = "", default: Any = None) -> Any:
        """Return a value of a role, or else of all roles."""
        found = self.values.get((role, name))
        found = self.values.get(("", name)) if found is None else found
        return default if found is None else found

    def where(self, name: str) -> str:
        """Return `file:line` of a value; `decode.system` is the one of a role."""
        role, _, name = name.rpartition(".")
        return self.document.where(self.paths.get((role, name), self.paths.get(("", name), self.path)))


def read_questions(
    file: FilePath, *, estimator: Estimator = CORRECTED, top_n: int = TOP_N
) -> tuple[Question, ...]:
    """Read the experiments of a file, in the order in which they are run.

    Raises:
        ConfigError: the file cannot be read.
        DeploymentError: with every problem of every experiment.
    """
    try:
        document = read_document(file)
    except DeploymentError:
        raise
    except ConfigError as error:
        raise ConfigError(error.message, hint="give the path of a file of experiments (YAML)") from None
    problems = list(document.problems)
    questions = []
    for name in _names(document, problems):
        given, wrong = _given(document, name)
        problems += wrong
        if not wrong:
            question, wrong = _question(name, given, estimator, top_n)
            problems += wrong
            questions.append(question)
    if problems:
        raise DeploymentError(problems)
    return tuple(questions)


def _names(document: Document, problems: list[Problem]) -> list[str]:
    """Return the names of the experiments to run."""
    root = document.value
    if not isinstance(root, dict) or not set(root) - {NAMES}:
        hint = "each experiment is a mapping under its own name"
        problems.append(Problem(document.where(()), "the file has no experiments", hint))
        return []
    there = [name for name in root if name != NAMES]
    if NAMES not in root:
        return there
    if not isinstance(root[NAMES], list) or not root[NAMES]:
        problems.append(Problem(document.where((NAMES,)), f"`{NAMES}` should be a list of names"))
        return []
    asked = {str(name): (NAMES, index) for index, name in enumerate(root[NAMES])}
    problems += [
        Problem(document.where(path), f"no experiment `{name}` in this file", did_you_mean(name, there))
        for name, path in asked.items()
        if name not in there
    ]
    return [name for name in asked if name in there]


def _given(document: Document, name: str) -> tuple[Given, list[Problem]]:
    """Return what one experiment says, whichever form it has, and its problems."""
    given = Given(document, (name,), {}, {}, [])
    problems: list[Problem] = []
    for section, path in _sections(document, name):
        keys = keys_of(section)
        mapping = value_at(document, path)
        if isinstance(mapping, dict):
            _mend(given, mapping, path)
        values, wrong = check_mapping(
            document, path, {key: each.type for key, each in keys.items()}, {*SECTIONS, *UNUSED, "config"}
        )
        problems += wrong
        for key, value in values.items():
            place = keys[key].role, keys[key].name
            given.values[place], given.paths[place] = value, (*path, key)
    return given, problems or list(_missing(given))


def _sections(document: Document, name: str) -> Iterator[tuple[str, Path]]:
    """Yield the experiment and its sections, the last of which wins."""
    root = (name,)
    yield "", root
    for path in (root, (name, "config")):
        mapping = value_at(document, path) if path == root or _has(document, path) else None
        if not isinstance(mapping, dict):
            continue
        if path != root:
            yield "config", path
        yield from (
            (key, (*path, key)) for key, value in mapping.items() if key in SECTIONS and value is not None
        )


def _has(document: Document, path: Path) -> bool:
    outer = value_at(document, path[:-1])
    return isinstance(outer, dict) and outer.get(path[-1]) is not None


def _mend(given: Given, mapping: dict[str, Any], path: Path) -> None:
    """Leave out what is null, read what is plainly meant, and note it; note what changes nothing here."""
    for key, value in list(mapping.items()):
        if value is None or value == "None":  # the default
            del mapping[key]
        elif isinstance(value, str) and value in MISTYPED:
            mapping[key] = MISTYPED[value]
            where = given.document.where((*path, key))
            given.notes.append(f"{where}: `{key}: {value}` is read as {str(mapping[key]).lower()}")
        elif UNUSED.get(key) and value:
            given.notes.append(f"{given.document.name}: `{key}` changes nothing here")


def _missing(given: Given) -> Iterator[Problem]:
    """Yield what an experiment has to say and does not, and what its serving mode has no use for."""
    mode = given.get("serving_mode")
    wanted = {"serving_mode": "serving_mode: agg or disagg", "total_gpus": "total_gpus"}
    if mode != "disagg":
        wanted |= {"model": "model_name", "system": "system_name"}
    yield from (
        Problem(given.where(""), f"`{text.partition(':')[0]}` is missing", f"add `{text}`")
        for name, text in wanted.items()
        if given.get(name) is None
    )
    for name, text in (("model", "model_name"), ("system", "system_name")) if mode == "disagg" else ():
        if (
            given.get(name, "prefill") is None
            or given.get(name, "decode", given.get(name, "prefill")) is None
        ):
            yield Problem(given.where(""), f"`{text}` is missing", f"add `{text}: ...`")
    if mode is None:
        return
    for role, name in given.values:
        other = role == "agg" if mode == "disagg" else role in PAIR and name != "system"
        if other:
            yield Problem(
                given.document.where(given.paths[role, name]),
                f"an experiment that is {mode} has no {role} workers",
                "take `prefill_` and `decode_` keys" if mode == "disagg" else "take `serving_mode: disagg`",
            )


def _question(name: str, given: Given, estimator: Estimator, top_n: int) -> tuple[Question, list[Problem]]:
    """Put the values of an experiment into a question."""
    mode = given.get("serving_mode")
    problems: list[Problem] = []
    roles = ("agg",) if mode == "agg" else PAIR
    workers = tuple(_worker(given, role, problems) for role in roles)
    question = Question(
        name=name,
        mode=mode,
        total_gpus=given.get("total_gpus"),
        workers=workers,
        load=Load(
            isl=given.get("isl", default=LOAD.isl),
            osl=given.get("osl", default=LOAD.osl),
            prefix=given.get("prefix", default=0),
            max_seq_len=given.get("max_seq_len"),
        ),
        targets=Targets(
            ttft=given.get("ttft", default=math.inf if given.get("request_latency") else TARGETS.ttft),
            tpot=given.get("tpot", default=TARGETS.tpot),
            request_latency=given.get("request_latency"),
        ),
        replica=_replica(given),
        tuning=_tuning(given),
        mtp=_mtp(given),
        wide_ep=any(given.get("wide_ep", role, default=False) for role in roles),
        complete=given.get("mode") == "replace",
        estimator=estimator,
        database_mode=given.get("database_mode", default="SILICON"),
        top_n=top_n,
        notes=tuple(given.notes),
        where=given.where,
    )
    return question, problems


def _worker(given: Given, role: str, problems: list[Problem]) -> WorkerQuestion:
    """Return what is asked about the workers of one role."""
    backend = given.get("backend", role)
    other = "prefill" if role == "decode" else role  # a decode worker is as the prefill worker, unless said
    return WorkerQuestion(
        model=given.get("model", role, default=given.get("model", other)),
        system=given.get("system", role, default=given.get("system", other)),
        backends=BACKENDS if backend in {"any", "auto"} else (backend,) if backend else (),
        version=given.get("version", role),
        formats=_formats(given, role, problems),
        lists=Lists(**{name: given.get(name, role) for name in ("gpus", *DIMENSIONS)}),
    )


def _formats(given: Given, role: str, problems: list[Problem]) -> Formats:
    """Return the number formats of a role: a profile's, then what `use_specific_quant_mode` and single keys say."""
    values: dict[str, str | None] = {}
    for profile in given.get("profiles", default=()):
        if profile not in PROFILES:
            hint = did_you_mean(profile, PROFILES) or f"one of {', '.join(PROFILES)}"
            problems.append(Problem(given.where("profiles"), f"no profile `{profile}`", hint))
            continue
        values |= {each: getattr(PROFILES[profile], each) for each in FORMATS}
    if specific := given.get("use_specific_quant_mode"):
        values |= {"moe": specific} if specific == "w4afp8" else {"gemm": specific, "moe": specific}
    values |= {each: said for each in FORMATS if (said := given.get(each, role)) is not None}
    for each, said in values.items():
        try:
            values[each] = None if said is None else format_name(said)
        except ConfigError as error:
            problems.append(Problem(given.where(f"{role}.{each}"), error.message, error.hint))
    return Formats(**values)


def _replica(given: Given) -> Replica | None:
    """Return the bounds of a replica, None where the file says nothing of it."""
    sizes = given.get("replica_gpus")
    said = {
        "gpus": tuple(sizes) if sizes else None,
        **{name: given.get(name) for name in ("max_gpus", "max_prefill_workers", "max_decode_workers")},
    }
    said = {name: value for name, value in said.items() if value is not None}
    return Replica(**said) if said else None


def _tuning(given: Given) -> Tuning:
    names = ("correction", "latency", "max_batch")
    said = {f"{role}_{name}": given.get(f"{role}_{name}") for role in PAIR for name in names}
    said["free_memory_fraction"] = given.get("free_gpu_memory_fraction")
    return Tuning(**{name: value for name, value in said.items() if value is not None})


def _mtp(given: Given) -> Mtp | None:
    """Return how many tokens are drafted, and how many of them are taken."""
    drafted = given.get("nextn")
    if drafted is None:
        return None
    accepted = given.get("accepted")
    if accepted is not None:
        return Mtp.accepting(drafted, accepted)
    rates = given.get("accept_rates")
    return Mtp(drafted=drafted) if rates is None else Mtp(drafted=drafted, accept_rates=tuple(rates))
