"""Turn a deployment file, the environment and flags into one Deployment, and say where each value came from.

Later layers win, for every field: default < platform < entry of the catalog < file < environment (`AEGIS_*`) < flag.
"""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from msgspec import Struct

from aegis.errors import DeploymentError, Problem
from aegis.spec.check import check_mapping, convert, explain, field_types, hint_for, value_at
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.document import Document, read_document
from aegis.spec.memory import format_memory
from aegis.spec.platforms import Site, load_platform
from aegis.spec.service import problems as problems_of_service
from aegis.spec.walltime import format_walltime, parse_walltime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aegis.spec.catalog.entry import CatalogEntry
    from aegis.spec.platform import Platform

GLOBAL_TYPES = {name: type_ for name, type_ in field_types(Deployment).items() if name != "models"}
MODEL_TYPES = field_types(ModelEntry)
SECRET = "hf_token"  # noqa: S105 - the name of the key, kept out of every struct that is written anywhere
DEFAULT = "default"
HOLDERS = ("image", "venv", "conda_env")  # of the engine
PATHS = ("hf_home", *HOLDERS, "aegis_env", "endpoints_file", "gateway_keys", "log_dir", "prebuilt")
MODEL_PATHS = ("model", "model_source")
PORTS = ("port_start", "registry_port", "gateway_port")


class Setting(Struct, frozen=True):
    """A value and where it came from."""

    value: Any
    origin: str


UNNAMED = Setting("this model", DEFAULT)  # in messages about an entry that has no `model`


class Secret:
    """A value that shows itself to nobody but who asks for it."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"


class Resolved(Struct, frozen=True):
    """A deployment, its platform, and the origin of every field (`account`, `models[0].instances`)."""

    deployment: Deployment
    platform: Platform
    hf_token: Secret | None
    origins: dict[str, str]
    warnings: tuple[str, ...]
    entry: CatalogEntry | None = None  # of the catalog, with the options of its launch


Layer = dict[str, Setting]


class Base(Struct, frozen=True):
    """What lies between the platform and the file: an entry of the catalog, as this platform can run it."""

    settings: Layer
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


EntryCheck: TypeAlias = "Callable[[ModelEntry, Mapping[str, str]], list[Problem]]"


def resolve(
    config: Path | Document | None,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    site: Site | None = None,
    check: EntryCheck | None = None,
    *,
    base: Callable[[Platform], Base] | None = None,
) -> Resolved:
    """Resolve a deployment.

    Args:
        config: the deployment file, if there is one, or what one would say.
        flags: what the command line gave, by field name; a value is text, a bool, a list or a mapping, or a Setting
            that says where it came from.
        environ: the environment; only `AEGIS_<FIELD>` and `HF_TOKEN` are read.
        site: where to look for profiles, and how to recognise this machine.
        check: finds further problems of a model entry, to be reported with all others.
        base: returns what lies below the file, once the platform is known.

    Raises:
        ConfigError: the file cannot be read.
        DeploymentError: with every problem of file, environment and flags.
    """
    site = site or Site.here(environ)
    reader = _Reader(environ, flags)
    document = read_document(config) if isinstance(config, Path) else config
    if document:
        reader.read_file(document)
    choice = reader.layer({name: GLOBAL_TYPES[name] for name in ("platform", "scheduler")})
    chosen = choice.get("platform", Setting("auto", DEFAULT))
    platform = reader.attempt(
        lambda: load_platform(chosen.value, site, _value(choice, "scheduler"), where=chosen.origin)
    )
    if base:
        if platform is None:
            raise DeploymentError(sorted(set(reader.problems), key=_by_place))
        reader.lay_below(base(platform))
    top = reader.layer(GLOBAL_TYPES)
    entries = reader.entries()
    if platform:
        _apply_platform(top, platform, reader)
    _check_meaning(top, entries, reader)
    if check:
        for entry in entries:
            origins = {name: setting.origin for name, setting in entry.items()}
            reader.problems += check(_model({"model": UNNAMED, **entry}), origins)
    if reader.problems or platform is None:
        raise DeploymentError(sorted(set(reader.problems), key=_by_place))
    return _assemble(top, entries, platform, reader)


class _Reader:
    """Gathers the layers and every problem in them."""

    def __init__(self, environ: Mapping[str, str], flags: Mapping[str, Any]) -> None:
        self.environ = environ
        self.flags = {name: value for name, value in flags.items() if value is not None}
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.document: Document | None = None
        self.file_top: Layer = {}
        self.file_entries: list[Layer] | None = None
        self.token = environ.get("HF_TOKEN") or None

    def read_file(self, document: Document) -> None:
        self.document = document
        self.problems += document.problems
        values, problems = check_mapping(
            document, (), {**GLOBAL_TYPES, **MODEL_TYPES}, known=("models", SECRET)
        )
        self.problems += problems
        self.file_top = {
            key: Setting(value, document.where((key,))) for key, value in values.items() if value is not None
        }
        if not isinstance(document.value, dict):
            return
        if token := document.value.get(SECRET):
            self.token = self.token or str(token)
            self.warnings.append(
                f"{document.where((SECRET,))}: a token in a file is easily shared; set HF_TOKEN in the environment instead"
            )
        if "models" in document.value:
            self.file_entries = self._read_entries(document)

    def _read_entries(self, document: Document) -> list[Layer]:
        listed = value_at(document, ("models",))
        if not isinstance(listed, list) or not listed:
            self.problem(
                document.where(("models",)), "`models` should be a list of models with at least one entry"
            )
            return []
        entries = []
        for index in range(len(listed)):
            values, problems = check_mapping(
                document, ("models", index), MODEL_TYPES, elsewhere=[*GLOBAL_TYPES, SECRET]
            )
            self.problems += problems
            where = {key: document.where(("models", index, key)) for key in values}
            entries.append(
                {key: Setting(value, where[key]) for key, value in values.items() if value is not None}
            )
            listed_wrong = not isinstance(listed[index], dict) or any(
                "`model`" in problem.message for problem in problems
            )
            if "model" not in values and not listed_wrong:
                self.problem(document.where(("models", index)), "this entry has no `model`")
        return entries

    def lay_below(self, base: Base) -> None:
        """Put settings below those of the file."""
        settings: Layer = {}
        for key, setting in base.settings.items():
            self._convert(settings, key, setting.value, {**GLOBAL_TYPES, **MODEL_TYPES}[key], setting.origin)
        self.file_top = overlay(settings, self.file_top)
        self.problems += base.problems
        self.warnings += base.warnings

    def layer(self, types: Mapping[str, Any]) -> Layer:
        """Return the settings of these fields: file, then environment, then flags."""
        result = {key: setting for key, setting in self.file_top.items() if key in types}
        result.update(self._environment(types))
        result.update(self._given(types))
        return result

    def entries(self) -> list[Layer]:
        """Return the settings of every model entry."""
        defaults = {key: setting for key, setting in self.file_top.items() if key in MODEL_TYPES}
        over = {**self._environment(MODEL_TYPES), **self._given(MODEL_TYPES)}
        if self.file_entries is not None:
            if "model" in defaults:
                self.problem(
                    defaults["model"].origin, "both `model` and `models` are given", "keep one of them"
                )
            if "model" in over and len(self.file_entries) > 1:
                self.problem(
                    over["model"].origin,
                    f"the file lists {len(self.file_entries)} models, so it is not clear which one to replace",
                    "give a file with one model, or none",
                )
            return [overlay(defaults, entry, over) for entry in self.file_entries]
        entry = overlay(defaults, over)
        if self.document and not isinstance(self.document.value, dict):
            return [entry]  # that is the problem to solve first
        if "model" not in entry and not any("`model`" in problem.message for problem in self.problems):
            where = self.document.where(()) if self.document else "--model"
            self.problem(where, "no model is given", "set `model:` in the file or pass --model")
        return [entry]

    def _environment(self, types: Mapping[str, Any]) -> Layer:
        found: Layer = {}
        for key, type_ in types.items():
            variable = f"AEGIS_{key.upper()}"
            if self.environ.get(variable) and is_scalar(type_):  # empty is unset, as the shell has it
                self._convert(found, key, self.environ[variable], type_, variable)
        return found

    def _given(self, types: Mapping[str, Any]) -> Layer:
        found: Layer = {}
        for key in types.keys() & self.flags.keys():
            given = self.flags[key]
            if not isinstance(given, Setting):
                given = Setting(given, f"--{key.replace('_', '-')}")
            self._convert(found, key, given.value, types[key], given.origin)
        return found

    def _convert(self, found: Layer, key: str, value: Any, type_: Any, origin: str) -> None:
        if not _is_unicode(value):
            self.problem(origin, f"`{key}` is not UTF-8 text")
            return
        try:
            found[key] = Setting(convert(value, type_, strict=False), origin)
        except msgspec.ValidationError as error:
            self.problem(origin, explain(key, value, error), hint_for(type_, value, error))

    def problem(self, where: str, message: str, hint: str | None = None) -> None:
        self.problems.append(Problem(where, message, hint))

    def attempt(self, load: Callable[[], Platform]) -> Platform | None:
        try:
            return load()
        except DeploymentError as error:
            self.problems += error.problems
            return None


def overlay(*layers: Layer) -> Layer:
    """Return the layers as one; later values win, and mappings (`env`) merge."""
    result: Layer = {}
    for layer in layers:
        for key, setting in layer.items():
            below = result.get(key)
            if below and isinstance(below.value, dict) and isinstance(setting.value, dict):
                merged = {**below.value, **setting.value}
                result[key] = Setting(merged, f"{below.origin}, {setting.origin}")
            else:
                result[key] = setting
    return result


def is_scalar(type_: Any) -> bool:
    """Tell whether a field can be given as one piece of text."""
    info = msgspec.inspect.type_info(type_)
    if isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    return not isinstance(info, msgspec.inspect.VarTupleType | msgspec.inspect.DictType)


def _apply_platform(top: Layer, platform: Platform, reader: _Reader) -> None:
    if "platform" not in top or top["platform"].value == "auto":
        top["platform"] = Setting(platform.name, "detected")
    if "scheduler" not in top:
        top["scheduler"] = Setting(platform.scheduler, f"platform {platform.name}")
    for key, value in platform.defaults.items():
        if key in GLOBAL_TYPES and key not in top:
            found: Layer = {}
            reader._convert(found, key, value, GLOBAL_TYPES[key], f"platform {platform.name}")  # noqa: SLF001 - same module
            top.update(found)


def _check_meaning(top: Layer, entries: list[Layer], reader: _Reader) -> None:
    """Find what the types cannot: a walltime's form, arguments for another engine, a home that nobody has."""
    _write_one_way(
        top,
        "walltime",
        lambda text: format_walltime(parse_walltime(text)),
        "HH:MM:SS, such as 01:00:00",
        reader,
    )
    _write_one_way(
        top,
        "overlap",
        lambda text: format_walltime(parse_walltime(text)),
        "HH:MM:SS, such as 02:00:00",
        reader,
    )
    _write_one_way(top, "mem_per_node", format_memory, "it as 64G", reader)
    named = [*(top.get(key) for key in PATHS), *(entry.get(key) for entry in entries for key in MODEL_PATHS)]
    for setting in named:
        if setting and setting.value.startswith("~") and not _has_home(setting.value):
            reader.problem(setting.origin, f"`{setting.value}`: there is no such home directory")
    for key, said, hint in problems_of_service({key: setting.value for key, setting in top.items()}):
        reader.problem(top[key].origin, said, hint)
    holders = [key for key in HOLDERS if key in top]
    for other in holders[1:]:
        said = f"`{other}` and `{holders[0]}` both say where the engine is"
        reader.problem(top[other].origin, said, "keep one of them")
    for entry in entries:
        engine = _value(entry, "engine", "vllm")
        unused = {"vllm": ("sglang", "sim"), "sglang": ("vllm", "sim"), "sim": ()}[engine]
        for other in unused:
            setting = entry.get(f"extra_{other}_args")
            if setting and setting.value:
                reader.problem(
                    setting.origin,
                    f"`extra_{other}_args` is given, but the engine is {engine}",
                    f"set `engine: {other}` or use `extra_{engine}_args`",
                )
    _check_ports(top, reader)
    _check_gateways(top, reader)


def _check_ports(top: Layer, reader: _Reader) -> None:
    for key, other in combinations([key for key in PORTS if key in top], 2):
        if top[key].value == top[other].value:
            reader.problem(top[other].origin, f"`{other}` and `{key}` are the same port")


def _check_gateways(top: Layer, reader: _Reader) -> None:
    """Find what is said of gateways where none is asked for; what a site or an environment says of all is left out."""
    if "gateways" in top or any("`gateways`" in problem.message for problem in reader.problems):
        return
    for key in {"gateway_port", "gateway_keys"} & top.keys():
        setting = top.pop(key)
        if not setting.origin.startswith(("AEGIS_", "platform ")):
            said = f"`{key}` is given, but no gateway is asked for"
            reader.problem(setting.origin, said, "set `gateways: 1`, or `gateways: per-node`")


def _write_one_way(top: Layer, key: str, form: Callable[[str], str], hint: str, reader: _Reader) -> None:
    """Give a value the form that all else relies on."""
    if setting := top.get(key):
        try:
            top[key] = Setting(form(setting.value), setting.origin)
        except ValueError as error:
            reader.problem(setting.origin, str(error), f"write {hint}")


def _assemble(top: Layer, entries: list[Layer], platform: Platform, reader: _Reader) -> Resolved:
    models = tuple(map(_model, entries))
    deployment = Deployment(models=models, **{key: setting.value for key, setting in top.items()})
    origins = {name: top[name].origin if name in top else DEFAULT for name in GLOBAL_TYPES}
    for index, entry in enumerate(entries):
        for name in MODEL_TYPES:
            origins[f"models[{index}].{name}"] = entry[name].origin if name in entry else DEFAULT
    token = Secret(reader.token) if reader.token else None
    return Resolved(deployment, platform, token, origins, tuple(reader.warnings))


def _is_unicode(value: Any) -> bool:
    """Tell whether all text in a value can be written to a file; Python smuggles odd bytes of argv in surrogates."""
    if isinstance(value, dict):
        return all(_is_unicode(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return all(map(_is_unicode, value))
    return not re.search(r"[\ud800-\udfff]", str(value))


def _has_home(path: str) -> bool:
    try:
        Path(path).expanduser()
    except RuntimeError:
        return False
    return True


def _model(entry: Layer) -> ModelEntry:
    return ModelEntry(**{key: setting.value for key, setting in entry.items()})


def _value(layer: Layer, key: str, default: Any = None) -> Any:
    return layer[key].value if key in layer else default


def _by_place(problem: Problem) -> tuple[str, int, str]:
    name, _, line = problem.where.rpartition(":")
    return (name, int(line), problem.message) if line.isdigit() else (problem.where, 0, problem.message)
