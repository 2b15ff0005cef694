"""Which files make up the catalog, and how they lie upon each other.

Each later file wins over the earlier ones, key by key; engine arguments and `env` merge, and `null` takes away what a file
below says (a key, one argument, or a whole model):

1. the models that come with Aegis
2. the site's: `cached_model_config_path` of environment.yaml, else vec-inf's shared folder
3. `~/.config/aegis/models.yaml` (or below `XDG_CONFIG_HOME`)
4. `$VEC_INF_CONFIG_DIR/models.yaml`
5. `$VEC_INF_CONFIG`, then `$VEC_INF_MODEL_CONFIG`
6. `$AEGIS_MODEL_CONFIG`

A file that is named outright (`--config`) is read alone. Below every entry lie the `default_args` of environment.yaml:
that of the shared folder, then that of `$VEC_INF_CONFIG_DIR`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aegis.errors import AegisError, DeploymentError, NotFoundError, Problem
from aegis.spec.catalog.entry import REQUIRED, CatalogEntry
from aegis.spec.catalog.environment import SHARED, Environment, read_environment
from aegis.spec.catalog.files import ModelFile, read_models
from aegis.spec.document import read_document
from aegis.spec.memory import format_memory
from aegis.spec.resolve import Layer, Setting
from aegis.spec.suggest import did_you_mean
from aegis.spec.walltime import parse_walltime

if TYPE_CHECKING:
    from collections.abc import Mapping

SHIPPED = Path(__file__).parents[2] / "data" / "models.yaml"
VARIABLES = ("VEC_INF_CONFIG", "VEC_INF_MODEL_CONFIG", "AEGIS_MODEL_CONFIG")
DIRECTORY_VARIABLE = "VEC_INF_CONFIG_DIR"


class Catalog:
    """All models that are known here."""

    def __init__(self, files: list[ModelFile], environment: Environment, warnings: list[str]) -> None:
        self.environment = environment
        self.layers: dict[str, Layer] = {}
        self.places: dict[str, str] = {}  # per model: where it was last spoken of
        self.wrong: dict[str, list[Problem]] = {}  # per model: what keeps it from being used
        self.problems: list[Problem] = [*environment.problems]  # of files as a whole
        self.warnings: list[str] = [*environment.warnings, *warnings]
        for file in files:
            self._lay(file)
        self._entries: dict[str, CatalogEntry | None] = {}

    def _lay(self, file: ModelFile) -> None:
        self.problems += file.problems
        self.warnings += file.warnings
        self.places |= file.places
        for name, found in file.wrong.items():
            self.wrong.setdefault(name, []).extend(found)
        for name, layer in file.models.items():
            if layer is None:
                self.layers.pop(name, None)
                self.wrong.pop(name, None)
            else:
                self.layers[name] = merge(self.layers.get(name, {}), layer)

    def names(self) -> list[str]:
        """Return the models that can be used, sorted."""
        return sorted(name for name in self.layers if self._entry(name))

    def find(self, name: str) -> str | None:
        """Return the model of that name, or the one that has it on the Hugging Face Hub."""
        if name in self.layers or name in self.wrong:
            return name
        by_id = [
            known
            for known, layer in self.layers.items()
            if "/" in name and (hub := layer.get("hf_model")) and hub.value == name
        ]
        return by_id[0] if by_id else None

    def layer(self, name: str) -> Layer:
        """Return the settings of a model that `find` found, upon the defaults of all."""
        return merge(self.environment.defaults, self.layers.get(name, {}))

    def entry(self, name: str) -> CatalogEntry:
        """Return a model.

        Raises:
            NotFoundError: there is none of that name.
            DeploymentError: what the files say of it is wrong.
        """
        found = self.find(name)
        if found is None:
            raise unknown_model(name, self)
        entry = self._entry(found)
        if entry is None:
            raise DeploymentError(self.wrong[found])
        return entry

    def _entry(self, name: str) -> CatalogEntry | None:
        """Return a model, or nothing where it is wrong; then `wrong` says why."""
        if name not in self._entries:
            layer = self.layer(name)
            found = check_layer(name, layer, self.places.get(name, name), self.environment)
            if name not in self.wrong and found:
                self.wrong[name] = found
            self._entries[name] = None if name in self.wrong else as_entry(name, layer)
        return self._entries[name]

    def doubts(self) -> list[str]:
        """Return what is wrong anywhere, for a person; every model has been looked at."""
        self.names()
        found = list(self.problems)
        too_large: dict[str, str] = {}  # of those that come with Aegis, what forbids them
        for name, problems in self.wrong.items():
            if all(problem.where.startswith(f"{SHIPPED}:") for problem in problems):
                too_large[name] = problems[0].hint or ""
            else:
                found += problems
        limits = ", ".join(dict.fromkeys(too_large.values()))
        many = f"{len(too_large)} models that come with aegis need more than the site allows: {limits}"
        return [*self.warnings, *map(str, dict.fromkeys(found)), *([many] if too_large else [])]


def load_catalog(environ: Mapping[str, str], config: Path | None = None, *, shared: Path = SHARED) -> Catalog:
    """Read the catalog.

    Args:
        environ: the environment, which names files.
        config: a file to read alone.
        shared: the folder that vec-inf's site shares.

    Raises:
        ConfigError: the file that was named outright cannot be read, or is no file of models.
    """
    warnings: list[str] = []
    environment = read_environment(_environment_files(environ, shared, warnings))
    if config:
        file = read_models(read_document(config))
        if file.problems:
            raise DeploymentError(file.problems)
        return Catalog([file], environment, warnings)
    files = []
    for path in _model_files(environ, environment, warnings):
        try:
            files.append(read_models(read_document(path)))
        except DeploymentError as error:
            files.append(ModelFile({}, {}, {}, error.problems, ()))
        except AegisError as error:
            warnings.append(error.message)
    return Catalog(files, environment, warnings)


def _environment_files(environ: Mapping[str, str], shared: Path, warnings: list[str]) -> list[Path]:
    files = [shared / "environment.yaml"]
    if folder := environ.get(DIRECTORY_VARIABLE):
        files.append(Path(folder).expanduser() / "environment.yaml")
        if not any((files[-1].parent / name).is_file() for name in ("environment.yaml", "models.yaml")):
            warnings.append(f"{DIRECTORY_VARIABLE}: {folder} has neither models.yaml nor environment.yaml")
    return [file for file in files if file.is_file()]


def _model_files(environ: Mapping[str, str], environment: Environment, warnings: list[str]) -> list[Path]:
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/")) / ".config")
    usual = [SHIPPED, environment.models_file, home / "aegis" / "models.yaml"]
    if folder := environ.get(DIRECTORY_VARIABLE):
        usual.append(Path(folder).expanduser() / "models.yaml")
    files = [file for file in usual if file.is_file()]
    for variable in VARIABLES:
        if name := environ.get(variable):
            file = Path(name).expanduser()
            if file.is_file():
                files.append(file)
            else:
                warnings.append(f"{variable}: there is no file {name}; the catalog is without it")
    return files


def merge(below: Layer, above: Layer) -> Layer:
    """Return one layer upon another: mappings merge, and nothing (`null`) takes away."""
    result = dict(below)
    for key, setting in above.items():
        under = result.get(key)
        if setting.value is None:
            result.pop(key, None)
        elif isinstance(setting.value, dict):
            merged: dict[str, Any] = {**under.value, **setting.value} if under else dict(setting.value)
            kept = {name: value for name, value in merged.items() if value is not None}
            origin = f"{under.origin}, {setting.origin}" if under and under.value else setting.origin
            result[key] = Setting(kept, origin)
        else:
            result[key] = setting
    return result


def as_entry(name: str, layer: Layer) -> CatalogEntry:
    """Return the entry of a layer that `check_layer` found good."""
    return CatalogEntry(model_name=name, **{key: setting.value for key, setting in layer.items()})


def check_layer(name: str, layer: Layer, where: str, environment: Environment) -> list[Problem]:
    """Return what is wrong with a model as a whole."""
    problems = [
        Problem(where, f"{name} has no `{key}`", f"add `{key}:`") for key in REQUIRED if key not in layer
    ]
    kind = layer.get("model_type")
    if kind and kind.value not in environment.model_types:
        hint = (
            did_you_mean(kind.value, environment.model_types)
            or f"one of {', '.join(environment.model_types)}"
        )
        problems.append(Problem(kind.origin, f"`model_type` cannot be `{kind.value}`", hint))
    for key, check, hint in (
        ("time", parse_walltime, "write HH:MM:SS, or D-HH:MM:SS"),
        ("mem_per_node", format_memory, "write it as 64G"),
    ):
        try:
            if key in layer:
                check(layer[key].value)
        except ValueError as error:
            problems.append(Problem(layer[key].origin, str(error), hint))
    problems += [
        Problem(
            layer[key].origin, f"`{key}` is {layer[key].value}; the site allows {most.value}", most.origin
        )
        for key, most in environment.limits.items()
        if key in layer and layer[key].value > most.value
    ]
    return problems


def unknown_model(name: str, catalog: Catalog) -> NotFoundError:
    """Return the error for a model that nobody knows."""
    near = did_you_mean(name, catalog.names())
    return NotFoundError(f"the catalog has no model `{name}`", hint=near or "`aegis list` shows all of them")
