"""Print the public API of vec-inf's client as JSON, run by a Python that holds it; or be used on ours."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
from typing import Any

# ruff: noqa: PLC0415, T201 - a program of its own


def parameters(function: Any) -> list[str]:
    """Return the parameters of a method or a class, `name` or `name=default`."""
    return [
        name if each.default is each.empty else f"{name}={each.default!r}"
        for name, each in inspect.signature(function).parameters.items()
        if name != "self"
    ]


def methods(client: type) -> dict[str, list[str]]:
    """Return the parameters of all public methods."""
    found = inspect.getmembers(client, inspect.isfunction)
    return {name: parameters(function) for name, function in found if not name.startswith("_")}


def members(kind: type[enum.Enum]) -> dict[str, Any]:
    """Return names and values of an enumeration."""
    return {each.name: each.value for each in kind}


def vec_inf() -> dict[str, Any]:
    """Return the API of the vec-inf that is installed."""
    from importlib.metadata import version

    from vec_inf.client import _exceptions, api, config, models  # type: ignore[import-not-found]

    classes = inspect.getmembers(models, inspect.isclass)
    return {
        "version": version("vec-inf"),
        "methods": methods(api.VecInfClient),
        "results": {name: parameters(kind) for name, kind in classes if dataclasses.is_dataclass(kind)},
        "enums": {
            name: members(kind) for name, kind in classes if issubclass(kind, enum.Enum) and kind.__members__
        },
        "errors": {
            name: kind.__bases__[0].__name__
            for name, kind in inspect.getmembers(_exceptions, inspect.isclass)
        },
        "model_config": list(config.ModelConfig.model_fields),
    }


if __name__ == "__main__":
    print(json.dumps(vec_inf(), indent=1))
