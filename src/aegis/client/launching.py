"""What a caller wants launched, as resolved deployments: by the functions that the command line uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aegis.errors import ConfigError
from aegis.fleet.batch import resolve_batch
from aegis.preflight import check_entry
from aegis.spec.catalog.arguments import split_binds
from aegis.spec.catalog.launch import Wishes, resolve_model
from aegis.spec.catalog.layer import SAME
from aegis.spec.catalog.lookup import load_catalog
from aegis.spec.catalog.variables import read_variables
from aegis.spec.document import Document
from aegis.spec.resolve import Resolved, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.client.models import LaunchOptions
    from aegis.spec.deployment import Deployment

KEYS = {**SAME, "num_nodes": "nodes"}  # option -> key of a deployment; others have the key's own name
WITHOUT_EFFECT = ("config", "data_type", "vocab_size")


def launched(name: str, options: LaunchOptions | None, environ: Mapping[str, str]) -> Resolved:
    """Resolve a model of the catalog with the options of its launch.

    Raises:
        NotFoundError: the catalog has no such model.
        ConfigError: with every problem of the entry, the environment and the options.
    """
    given = {key: value for key, value in vars(options).items() if value is not None} if options else {}
    wishes = Wishes(**{key: given[key] for key in Wishes.__struct_fields__ if key in given})
    flags = {
        KEYS.get(key, key): _value(key, value)
        for key, value in given.items()
        if key not in (*Wishes.__struct_fields__, *WITHOUT_EFFECT)
    }
    config = Path(given["config"]) if "config" in given else None
    catalog = load_catalog(environ, config)
    return resolve_model(name, catalog, wishes, flags, environ, check=check_entry)


def launched_together(
    names: Sequence[str], config: str | None, options: Mapping[str, str | None], environ: Mapping[str, str]
) -> list[Resolved]:
    """Resolve several models of the catalog, or of one file, for one job.

    Raises:
        NotFoundError: the catalog lacks one.
        ConfigError: with every problem, or there is no model at all.
    """
    if not names:
        raise ConfigError("no model is given", hint="name at least one model of the catalog")
    catalog = load_catalog(environ, Path(config) if config else None)
    flags = {key: value for key, value in options.items() if value is not None}

    def resolve_one(name: str) -> Resolved:
        return resolve_model(name, catalog, Wishes(), dict(flags), environ, check=check_entry)

    return resolve_batch(names, resolve_one)


def described(
    deployment: Deployment | Mapping[str, Any] | str | os.PathLike[str],
    keys: Mapping[str, Any],
    environ: Mapping[str, str],
) -> Resolved:
    """Resolve a deployment: a file, or what one would say; `keys` win over it.

    Raises:
        ConfigError: with every problem.
    """
    if isinstance(deployment, str | os.PathLike):
        return resolve(Path(deployment), keys, environ, check=check_entry)
    values = msgspec.to_builtins(deployment, enc_hook=str, str_keys=True)
    return resolve(Document("deployment", values, {}, {}, ()), keys, environ, check=check_entry)


def _value(key: str, value: Any) -> Any:
    """Return an option as a key of a deployment has it.

    Raises:
        ConfigError: it names variables that cannot be read.
    """
    if key == "bind":
        return split_binds(value)
    return read_variables(value) if key == "env" else value
