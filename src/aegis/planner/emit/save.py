"""Write a plan into a folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from aegis.errors import AegisError, ConfigError
from aegis.planner.emit.names import folder_name, free_name
from aegis.planner.emit.tree import Tree
from aegis.planner.tables.versions import version_order
from aegis.spec.platforms import Site, load_platform

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.planner.emit.tree import Files
    from aegis.planner.plan import Plan

TOP_N = 3  # configurations that files are written for, as in the guide
SCRIPT = 0o755


def save(
    plan: Plan,
    directory: Path,
    *,
    top_n: int = TOP_N,
    generated_config_version: str | None = None,
    platform: str | None = None,
) -> Path:
    """Write everything of a plan into a new folder of `directory`.

    Args:
        plan: what to write.
        directory: made if it is not there.
        top_n: configurations of each experiment that files are written for.
        generated_config_version: version of the engine whose form the files have; default: the planned one.
        platform: site profile that aegis.yaml is for: a name of `aegis platform list`, or a file.

    Returns:
        The folder: MODEL_SYSTEM_BACKEND_isl.._osl.._ttft.._tpot.._RANDOM.

    Raises:
        DeploymentError: unknown platform.
        ConfigError: `generated_config_version` is no version.
        AegisError: the folder cannot be written.
    """
    if generated_config_version is not None and not version_order(generated_config_version)[0]:
        raise ConfigError(f"`{generated_config_version}` is no version of an engine", hint="such as 1.0.0rc6")
    site = None if platform is None else load_platform(platform, Site.here(os.environ))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        folder = free_name(directory.resolve(), folder_name(plan))
        _write(Tree(plan, folder, version=generated_config_version, platform=site).files(top_n), folder)
    except OSError as error:
        raise AegisError(f"{error.filename or directory}: {error.strerror or error}") from None
    return folder


def _write(files: Files, folder: Path) -> None:
    """Write the files under a temporary name, then give the folder its own.

    Raises:
        OSError: one cannot be written; nothing is left.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        for name, content in files.items():
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(
                content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
            )
            if file.suffix == ".sh":
                file.chmod(SCRIPT)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
