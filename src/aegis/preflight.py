"""Find before the queue what would fail after it. Pure: only what the deployment itself says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aegis.engines import engine
from aegis.errors import DeploymentError, Problem

if TYPE_CHECKING:
    from aegis.spec.deployment import ModelEntry
    from aegis.spec.resolve import Resolved

SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY)$", re.IGNORECASE)
SECRET_FLAGS = {
    "--api-key": "VLLM_API_KEY",
    "--hf-token": "HF_TOKEN",
    "--admin-api-key": "SGLANG_ADMIN_API_KEY",
}


def check_deployment(resolved: Resolved) -> None:
    """Refuse what cannot work or would show a secret.

    Raises:
        DeploymentError: with every problem.
    """
    problems: list[Problem] = []
    for index, entry in enumerate(resolved.deployment.models):
        origins = {
            name.rpartition(".")[2]: origin
            for name, origin in resolved.origins.items()
            if name.startswith(f"models[{index}].")
        }
        problems += _reserved(entry, origins)
        problems += _secrets(entry, origins)
    if problems:
        raise DeploymentError(problems)


def _reserved(entry: ModelEntry, origins: dict[str, str]) -> list[Problem]:
    """Flags that Aegis sets itself: given twice, the placement and the engine would disagree."""
    reserved = engine(entry.engine).reserved
    where = origins.get(f"extra_{entry.engine}_args", entry.model)
    found = []
    for arg in entry.extra_args:
        name = arg.partition("=")[0]
        if name in reserved:
            key = reserved[name]
            hint = f"use the key `{key}`" if key else "servers listen where the platform says"
            found.append(Problem(where, f"`{name}` of {entry.name} is set by aegis", hint))
    return found


def _secrets(entry: ModelEntry, origins: dict[str, str]) -> list[Problem]:
    """Secrets in arguments or in the file would be in job scripts and process lists."""
    found = []
    for engine_name in ("vllm", "sglang", "sim"):
        key = f"extra_{engine_name}_args"
        for arg in getattr(entry, key):
            if variable := SECRET_FLAGS.get(arg.partition("=")[0]):
                said = f"`{arg.partition('=')[0]}` would show a secret to every user of the node"
                found.append(
                    Problem(origins.get(key, entry.model), said, f"export {variable}, it is passed on")
                )
    for name in entry.env:
        if SECRET_NAME.search(name):
            said = f"`env: {name}` would write a secret into the job script"
            found.append(Problem(origins.get("env", entry.model), said, f"export {name}, it is passed on"))
    return found
