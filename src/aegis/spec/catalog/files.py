"""Read one file of models: what it says of each, and where everything wrong in it stands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from aegis.errors import Problem
from aegis.spec.catalog.arguments import canonical
from aegis.spec.catalog.entry import ENGINE_ARGS, FIELDS, Partial
from aegis.spec.check import check_mapping
from aegis.spec.resolve import Layer, Setting
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from aegis.spec.document import Document

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
NAME_HINT = "letters, digits, `.`, `-` and `_`"


class ModelFile(Struct, frozen=True):
    """One file of models."""

    models: dict[str, Layer | None]  # None: it takes the model out of the catalog
    places: dict[str, str]  # per model
    wrong: dict[str, tuple[Problem, ...]]  # per model; the others are as good as ever
    problems: tuple[Problem, ...]  # of the file as a whole
    warnings: tuple[str, ...]


def read_models(document: Document) -> ModelFile:
    """Return what a file says of each model; a bad entry spoils no other."""
    problems, warnings, owners = _by_owner(document)
    listed = document.value.get("models") if isinstance(document.value, dict) else None
    if not isinstance(listed, dict):
        return ModelFile({}, {}, {}, (*problems, _no_models(document)), tuple(warnings))
    models: dict[str, Layer | None] = {}
    for name, given in listed.items():
        layer, found, doubts = _read_entry(document, name, given)
        models[name] = layer
        warnings += doubts
        owners.setdefault(name, []).extend(found)
    wrong = {name: tuple(found) for name, found in owners.items() if found}
    places = {name: document.where(("models", name)) for name in models}
    return ModelFile(models, places, wrong, tuple(problems), tuple(warnings))


def _by_owner(document: Document) -> tuple[list[Problem], list[str], dict[str, list[Problem]]]:
    """Share out what the reader of the file found: to the model in whose lines it is, or to the file."""
    starts = sorted(
        (line, str(path[1]))
        for path, line in document.lines.items()
        if len(path) == 2 and path[0] == "models"  # noqa: PLR2004 - models, name
    )
    problems: list[Problem] = []
    owners: dict[str, list[Problem]] = {}
    for problem in document.problems:
        line = int(problem.where.rpartition(":")[2])
        owner = next((name for start, name in reversed(starts) if start <= line), None)
        target = problems if owner is None else owners.setdefault(owner, [])
        target.append(problem)
    warnings = [
        f"{document.where((key,))}: `{key}` means nothing in a file of models"
        for key in (document.value if isinstance(document.value, dict) else ())
        if key != "models"
    ]
    return problems, warnings, owners


def _no_models(document: Document) -> Problem:
    value = document.value
    if isinstance(value, dict) and ("model" in value or isinstance(value.get("models"), list)):
        return Problem(
            document.where(("models",)),
            "this is a deployment, not a file of models",
            "to submit it, leave the name of the model out",
        )
    return Problem(
        document.where(("models",)), "no `models:` with a mapping of names", "write each model under its name"
    )


def _read_entry(document: Document, name: str, given: Any) -> tuple[Layer | None, list[Problem], list[str]]:
    """Return the settings of one model, what is wrong with them, and what is passed over."""
    path = ("models", name)
    where = document.where(path)
    if not NAME.fullmatch(name):
        return {}, [Problem(where, f"`{name}` is no name for a model", NAME_HINT)], []
    if given is None:
        return None, [], []
    problems: list[Problem] = []
    doubts: list[str] = []
    try:  # nearly every entry is right: look at it as a whole
        msgspec.convert(given, Partial)
        values = given
    except msgspec.ValidationError:
        listed = given if isinstance(given, dict) else {}
        unknown = [key for key in listed if key not in FIELDS]
        nothing = dict.fromkeys(key for key, value in listed.items() if value is None and key in FIELDS)
        types = {key: type_ for key, type_ in FIELDS.items() if key not in nothing}
        values, problems = check_mapping(document, path, types, known=[*unknown, *nothing])
        values |= nothing
        doubts = [_passed_over(document.where((*path, key)), name, key) for key in unknown]
    layer: Layer = {}
    for key, value in values.items():
        origin = document.where((*path, key))
        kept = None if value == "" else value  # vec-inf writes "" for "not given"
        if key in ENGINE_ARGS and value:
            kept, found = _arguments(key.partition("_")[0], value, origin)
            problems += found
        layer[key] = Setting(kept, origin)
    return layer, problems, doubts


def _arguments(engine: str, given: dict[str, Any], where: str) -> tuple[dict[str, Any], list[Problem]]:
    """Return engine arguments under their long names."""
    problems = [
        Problem(where, f"`{flag}` is no flag of an engine", f"write `--{flag.lstrip('-')}`")
        for flag in given
        if not re.match(r"--?[A-Za-z]", flag)
    ]
    return {canonical(engine, flag): value for flag, value in given.items()}, problems


def _passed_over(where: str, name: str, key: str) -> str:
    hint = did_you_mean(key, FIELDS)
    return f"{where}: {name}: unknown key `{key}` is passed over{f' ({hint})' if hint else ''}"
