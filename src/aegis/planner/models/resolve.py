"""Find a model: a name of the guide, a Hugging Face id, or the path of a config.json."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from aegis.errors import ConfigError
from aegis.planner.models.config import parse_config, read_config
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from aegis.planner.models.shapes import ModelShape

SHIPPED = Path(__file__).parents[2] / "data" / "planner" / "models.json"


class _Shipped(Struct):
    names: dict[str, str]
    models: dict[str, dict[str, Any]]


def find_model(name: str) -> ModelShape:
    """Return the shape of a model.

    Args:
        name: a name of the guide (QWEN3_32B), a Hugging Face id (Qwen/Qwen3-32B, also without the organisation and
            in any case), or the path of a config.json or of a directory that holds one.

    Raises:
        ConfigError: nobody knows the model, or its config.json is not understood.
    """
    known = _index().get(name.lower())
    path = Path(name).expanduser()
    if known is None or (path.suffix == ".json" and path.is_file()):
        if _is_there(path):
            return read_config(path)
        raise _unknown(name, path)
    return _shipped_model(known, name)


def leaves_formats_open(name: str) -> bool:
    """Tell whether a name stands for no checkpoint in particular: those of the guide."""
    return name.lower() in {each.lower() for each in _load().names if "/" not in each}


def served_from(name: str) -> str:
    """Return what an engine loads for a model: its Hugging Face id, or the directory of its config.json."""
    path = Path(name).expanduser()
    known = _index().get(name.lower())
    if known and not (path.suffix == ".json" and path.is_file()):
        return known
    return str((path.parent if path.suffix == ".json" else path).absolute()) if _is_there(path) else name


def model_names() -> tuple[str, ...]:
    """Return all names and ids that need no file, sorted."""
    shipped = _load()
    return tuple(sorted((*shipped.names, *shipped.models), key=str.lower))


@cache
def _shipped_model(key: str, name: str) -> ModelShape:
    return parse_config(_load().models[key], where=key, name=name)


@cache
def _load() -> _Shipped:
    return msgspec.json.decode(SHIPPED.read_bytes(), type=_Shipped)


@cache
def _index() -> dict[str, str]:
    """Return lower-case name -> id; a short one (without the organisation) only where it is clear whose it is."""
    shipped = _load()
    full = {each.lower(): each for each in shipped.models}
    full |= {name.lower(): target for name, target in shipped.names.items()}
    short: dict[str, str] = {}
    for name, target in full.items():
        last = name.rpartition("/")[2]
        short[last] = target if short.get(last, target) == target else ""
    return {**{last: target for last, target in short.items() if target}, **full}


def _is_there(path: Path) -> bool:
    try:
        return path.is_file() or (path / "config.json").is_file()
    except OSError:  # a name that is too long for a path
        return False


def _unknown(name: str, path: Path) -> ConfigError:
    """Return the error of a name that leads to no model: of a path, what is missing there."""
    try:
        if path.is_dir():
            return ConfigError(f"{name}: this folder has no config.json", hint="name the folder of a model")
    except OSError:  # a name that is too long for a path
        pass
    if path.suffix == ".json":
        return ConfigError(f"{name}: there is no such file")
    return ConfigError(f"`{name}` is no model that is known", hint=_hint(name))


def _hint(name: str) -> str:
    near = did_you_mean(name, model_names()) or did_you_mean(name.upper(), model_names())
    ask = "give the path of its config.json"
    return f"{near} Or {ask}" if near else ask
