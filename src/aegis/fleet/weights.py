"""Where an engine finds its weights, and the download where that was asked for."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from aegis.errors import AegisError, ConfigError
from aegis.fleet.environments import expanded
from aegis.fleet.order import Weights
from aegis.preflight.source import chosen_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from aegis.spec.deployment import Deployment, ModelEntry


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


def download(
    deployment: Deployment, environ: Mapping[str, str], token: str | None, say: Callable[[str], None]
) -> None:
    """Download the models that ask for it, with the engine environment's own `hf`; what is there is not fetched again.

    Raises:
        AegisError: it fails; the message has the last words of `hf`.
    """
    venv = deployment.venv
    program = str(expanded(venv) / "bin" / "hf") if venv else "hf"
    for entry in deployment.models:
        if not entry.download_weights or entry.engine == "sim" or deployment.skip_staging:
            continue
        command = [program, "download", entry.model]
        if entry.model_source:
            source = expanded(entry.model_source)
            if source.is_dir():
                continue
            command += ["--local-dir", str(source)]
        say(f"downloading {entry.model}")
        secret = {"HF_TOKEN": token} if token else {}
        home = str(expanded(deployment.hf_home))
        try:
            subprocess.run(
                command,
                env={**environ, **secret, "HF_HOME": home},
                check=True,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
        except OSError as error:
            raise AegisError(
                f"{program} cannot be run ({error.strerror}), and {entry.name} is to be downloaded",
                hint="install huggingface_hub beside the engine, or set `model_source`",
            ) from None
        except subprocess.CalledProcessError as error:
            last = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
            raise AegisError(f"{entry.model} cannot be downloaded: {last[0]}") from None


def path_of(environ: Mapping[str, str]) -> str:
    """Return the PATH that servers start from."""
    return environ.get("PATH") or os.defpath
