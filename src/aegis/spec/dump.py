"""Write a deployment as the YAML file that resolves to it again, and the schema of such files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.resolve import DEFAULT, SECRET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.spec.platform import Platform

TEXT_TAG = "tag:yaml.org,2002:str"
NUMBER = re.compile(r"[-+]?[0-9.:]+(?:[eE][-+]?[0-9]+)?|0o[0-7]+")  # what some version of YAML reads as one


def dump_deployment(
    deployment: Deployment, origins: Mapping[str, str] | None = None, *, brief: bool = False
) -> str:
    """Return the deployment as YAML.

    Args:
        deployment: what to write.
        origins: with these, each line says where its value came from.
        brief: leave out keys without a value.
    """
    values = msgspec.to_builtins(deployment)
    if brief:
        values = {key: value for key, value in values.items() if value not in (None, (), {})}
        values["models"] = [
            {key: value for key, value in model.items() if value not in (None, (), {})}
            for model in values["models"]
        ]
    models = values.pop("models")
    lines = [line for key, value in values.items() for line in _entry(key, value, origins, key)]
    lines += ["", "models:"]
    for index, model in enumerate(models):
        entry = [
            line
            for key, value in model.items()
            for line in _entry(key, value, origins, f"models[{index}].{key}")
        ]
        lines += [f"  - {entry[0]}", *(f"    {line}" for line in entry[1:])]
    return "\n".join(lines) + "\n"


def dump_platform(platform: Platform) -> str:
    """Return a site profile as YAML that loads as the same profile, under its own name."""
    return _dump(_beyond_defaults(msgspec.structs.replace(platform, extends=None)))


def dump_choices(deployment: Deployment) -> str:
    """Return the deployment as YAML, without what is left at its default."""
    values = _beyond_defaults(deployment)
    models = values.pop("models")
    return _dump({**values, "models": models})


def _dump(values: Mapping[str, Any]) -> str:
    return "".join(f"{line}\n" for key, value in values.items() for line in _entry(key, value, None, key))


def _beyond_defaults(struct: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a struct, and of those in it, that differ from their defaults."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if value == field.default:
            continue
        if isinstance(value, msgspec.Struct):
            value = _beyond_defaults(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
            value = [_beyond_defaults(each) for each in value]
        if value not in ({}, ()):
            values[field.name] = msgspec.to_builtins(value)
    return values


class _Dumper(yaml.SafeDumper):
    """Keeps every text on one line, and quotes what any version of YAML takes for something else."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    kind = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    plain = kind == TEXT_TAG and not NUMBER.fullmatch(text) and text.isprintable()
    return dumper.represent_scalar(TEXT_TAG, text, style=None if plain else '"')


_Dumper.add_representer(str, _text)


def _entry(key: str, value: Any, origins: Mapping[str, str] | None, path: str) -> list[str]:
    text = yaml.dump({key: value}, Dumper=_Dumper, width=10**6, sort_keys=False, allow_unicode=True)
    first, *rest = text.rstrip("\n").split("\n")
    if origins is not None:
        origin = origins.get(path, DEFAULT)
        one_line = "".join(char if char.isprintable() else " " for char in origin)  # files may have any name
        first = f"{first}  # {one_line}"
    return [first, *rest]


def deployment_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a deployment file, with one model or a list of them."""
    (schema, model), definitions = msgspec.json.schema_components(
        [Deployment, ModelEntry], ref_template="#/$defs/{name}"
    )
    del schema, model
    top = dict(definitions.pop("Deployment"))
    entry = definitions["ModelEntry"]
    properties = {**top["properties"], **entry["properties"]}
    properties[SECRET] = {
        "type": "string",
        "description": "Hugging Face token; better set as HF_TOKEN in the environment",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **top,
        "title": "Aegis deployment",
        "properties": properties,
        "required": [],
        "oneOf": [{"required": ["model"]}, {"required": ["models"]}],
        "$defs": definitions,
    }
