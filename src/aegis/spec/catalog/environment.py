"""vec-inf's `environment.yaml`: what a site, or a user, says of all models."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from aegis.errors import AegisError, DeploymentError, Problem
from aegis.spec.catalog.entry import FIELDS, TYPES
from aegis.spec.check import explain
from aegis.spec.document import Document, read_document
from aegis.spec.resolve import Layer, Setting
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHARED = Path("/model-weights/vec-inf-shared")  # where vec-inf's site keeps what all its users share
CONTAINERS = ("apptainer", "singularity")
SECTIONS = {
    "paths": ("image_path", "vllm_image_path", "sglang_image_path", "cached_model_config_path"),
    "containerization": ("module_load_cmd", "module_name"),
    "limits": ("max_gpus_per_node", "max_num_nodes", "max_cpus_per_task"),
    "required_args": (),  # any
    "default_args": (*FIELDS, "data_type"),
}
WHOLE = ("allowed_values", "python_version", "model_types")  # the first two mean nothing here
LIMITED = {
    "max_gpus_per_node": "gpus_per_node",
    "max_num_nodes": "num_nodes",
    "max_cpus_per_task": "cpus_per_task",
}
REQUIRED_VARIABLES = {"account": "VEC_INF_ACCOUNT", "work_dir": "VEC_INF_WORK_DIR"}


class Environment(Struct, frozen=True):
    """What holds for all models, with the place of each word."""

    defaults: Layer = {}  # of every model, unless it says otherwise
    images: dict[str, Setting] = {}  # per engine
    models_file: Path = SHARED / "models.yaml"
    containers: tuple[str, ...] = CONTAINERS  # values of `venv` that mean a container
    modules: Setting | None = None
    limits: dict[str, Setting] = {}  # by field of an entry
    required: dict[str, Setting] = {}  # by field: the variable that may give it
    variables: dict[str, str] = {}  # by field: that, or vec-inf's usual one
    model_types: tuple[str, ...] = TYPES
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()

    def image(self, engine: str) -> Setting:
        """Return the image of an engine: the one that a file names, or where vec-inf's site has it."""
        usual = SHARED / f"vector-inference-{engine}_latest.sif"
        return self.images.get(engine, Setting(str(usual), "the usual place of images"))


def read_environment(files: Sequence[Path]) -> Environment:
    """Return what these files say together; later ones win, key by key."""
    told: dict[str, dict[str, Setting]] = {name: {} for name in SECTIONS}
    types: tuple[str, ...] = TYPES
    problems: list[Problem] = []
    warnings: list[str] = []
    for file in files:
        try:
            document = read_document(file)
        except DeploymentError as error:
            problems += error.problems
            continue
        except AegisError as error:
            warnings.append(error.message)
            continue
        problems += document.problems
        if not isinstance(document.value, dict):
            problems.append(Problem(document.where(()), "expected a mapping of sections"))
            continue
        for name, value in document.value.items():
            if name in SECTIONS:
                found, doubts = _section(document, name, value)
                told[name].update(found)
                warnings += doubts
            elif name not in WHOLE:
                warnings.append(_unknown(document.where((name,)), name, [*SECTIONS, *WHOLE]))
        listed = document.value.get("model_types")
        if isinstance(listed, list) and listed:
            types = tuple(dict.fromkeys([*map(str, listed), *types]))
    return _assemble(told, types, problems, warnings)


def _section(document: Document, name: str, value: Any) -> tuple[dict[str, Setting], list[str]]:
    """Return the settings of a section; empty ones say nothing."""
    if not isinstance(value, dict):
        doubt = [f"{document.where((name,))}: `{name}` should be a mapping; it is passed over"]
        return {}, ([] if value is None else doubt)
    known = SECTIONS[name]
    doubts = [
        _unknown(document.where((name, key)), key, known) for key in value if known and key not in known
    ]
    return {
        key: Setting(document.texts.get((name, key), each), document.where((name, key)))
        for key, each in value.items()
        if each not in (None, "", {}) and (not known or key in known)
    }, doubts


def _assemble(
    told: Mapping[str, Mapping[str, Setting]],
    types: tuple[str, ...],
    problems: list[Problem],
    warnings: list[str],
) -> Environment:
    paths, container = told["paths"], told["containerization"]
    images = {engine: paths[key] for engine in ("vllm", "sglang") if (key := f"{engine}_image_path") in paths}
    if "image_path" in paths:
        images.setdefault("vllm", paths["image_path"])
    usual = Setting(str(SHARED / "models.yaml"), "")
    word = container.get("module_name")
    required = {key: Setting(str(each.value), each.origin) for key, each in told["required_args"].items()}
    return Environment(
        defaults=_defaults(told["default_args"], problems),
        images=images,
        models_file=Path(str(paths.get("cached_model_config_path", usual).value)).expanduser(),
        containers=(*CONTAINERS, str(word.value)) if word else CONTAINERS,
        modules=_modules(container.get("module_load_cmd")),
        limits=_limits(told["limits"], problems),
        required=required,
        variables={**REQUIRED_VARIABLES, **{key: each.value for key, each in required.items()}},
        model_types=types,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _defaults(told: Mapping[str, Setting], problems: list[Problem]) -> Layer:
    result: Layer = {}
    for key, each in told.items():
        if key not in FIELDS:
            continue
        try:
            result[key] = Setting(msgspec.convert(each.value, FIELDS[key], strict=False), each.origin)
        except msgspec.ValidationError as error:
            problems.append(Problem(each.origin, explain(key, each.value, error)))
    return result


def _limits(told: Mapping[str, Setting], problems: list[Problem]) -> dict[str, Setting]:
    result = {}
    for key, each in told.items():
        try:
            result[LIMITED[key]] = Setting(int(each.value), each.origin)
        except (TypeError, ValueError):
            problems.append(Problem(each.origin, f"`{key}` should be a whole number, not `{each.value}`"))
    return result


def _modules(command: Setting | None) -> Setting | None:
    """Return the modules of `module load A B`; another command cannot be kept as data."""
    try:
        words = shlex.split(str(command.value)) if command else []
    except ValueError:
        words = []
    return Setting(tuple(words[2:]), command.origin) if command and words[:2] == ["module", "load"] else None


def _unknown(where: str, key: str, known: Sequence[str]) -> str:
    hint = did_you_mean(key, known)
    return f"{where}: unknown key `{key}` is passed over{f' ({hint})' if hint else ''}"
