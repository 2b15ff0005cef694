"""Where an engine finds its weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aegis.errors import ConfigError
from aegis.fleet.environments import expanded
from aegis.fleet.order import Weights
from aegis.preflight.source import chosen_snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aegis.spec.deployment import ModelEntry


def find_weights(entry: ModelEntry, *, skip_staging: bool) -> Weights:
    """Return what the engine loads: `model_source`, a directory given as `model`, or the hub's name.

    Raises:
        ConfigError: `model_source`, or the directory given as `model`, is not there.
    """
    if entry.model_source and not skip_staging and entry.engine != "sim":
        source = expanded(entry.model_source).absolute()
        if not source.is_dir():
            raise ConfigError(
                f"model_source of {entry.name} is not there: {source}",
                hint="give the directory that holds config.json, or a Hugging Face cache entry (models--ORG--NAME)",
            )
        try:
            return Weights(str(snapshot_of(source)), local=True)
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
    path = expanded(entry.model)
    if path.is_absolute() or entry.model.startswith((".", "~")):
        if not path.is_dir() and entry.engine != "sim":
            raise ConfigError(
                f"model {entry.model} is not there", hint="give a directory, or a Hugging Face id"
            )
        return Weights(str(path.absolute()), local=True)  # `./-x` must not become a flag
    return Weights(entry.model, local=False)


def snapshot_of(source: Path) -> Path:
    """Return the directory that holds config.json: the source, or the snapshot that a hub cache entry points to.

    Raises:
        ConfigError: a cache entry without a complete snapshot.
    """
    snapshots = source / "snapshots"
    if not snapshots.is_dir():
        return source
    main = source / "refs" / "main"
    wanted = main.read_text(errors="replace").strip() if main.is_file() else ""
    complete = {path.name for path in snapshots.iterdir() if (path / "config.json").exists()}
    chosen = chosen_snapshot(wanted, complete)
    if chosen is None:
        raise ConfigError(
            f"{source} is a Hugging Face cache entry without a complete snapshot",
            hint="download the model again, or name the snapshot's directory",
        )
    return snapshots / chosen


def path_of(environ: Mapping[str, str]) -> str:
    """Return the PATH that servers start from."""
    return environ.get("PATH") or os.defpath
