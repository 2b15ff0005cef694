"""What a model entry says that cannot work or would show a secret. Pure: only what the deployment itself says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aegis.engines import engine, ray
from aegis.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.spec.deployment import ModelEntry

SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY)$", re.IGNORECASE)
TWO_IN_ONE = re.compile(r"--?[A-Za-z][\w.-]*\s")  # `--max-model-len 32768`, where a shell would have split it
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_FLAGS = {
    "--api-key": "VLLM_API_KEY",
    "--hf-token": "HF_TOKEN",
    "--admin-api-key": "SGLANG_ADMIN_API_KEY",
}


def check_entry(entry: ModelEntry, origins: Mapping[str, str]) -> list[Problem]:
    """Return what cannot work or would show a secret; `origins` says where each field came from."""
    return [
        *_names(entry, origins),
        *_executor(entry, origins),
        *_reserved(entry, origins),
        *_variables(entry, origins),
        *_secrets(entry, origins),
    ]


def _names(entry: ModelEntry, origins: Mapping[str, str]) -> list[Problem]:
    """A model that an engine's command line would take for a flag."""
    if not entry.model.startswith("-"):
        return []
    hint = "for a directory of that name write ./ before it"
    return [Problem(origins.get("model", entry.model), f"`{entry.model}` looks like a flag", hint)]


def _executor(entry: ModelEntry, origins: Mapping[str, str]) -> list[Problem]:
    """Ray where it cannot be."""
    wrong = ray.why_not(entry)
    return [Problem(origins.get("distributed_executor", entry.model), *wrong)] if wrong else []


def _variables(entry: ModelEntry, origins: Mapping[str, str]) -> list[Problem]:
    """Variables that no shell and no container passes on."""
    where, hint = origins.get("env", entry.model), "letters, digits and underscores, a digit not first"
    wrong = [name for name in entry.env if not VARIABLE.fullmatch(name)]
    return [Problem(where, f"`{name}` is no name of a variable", hint) for name in wrong]


def _reserved(entry: ModelEntry, origins: Mapping[str, str]) -> list[Problem]:
    """Flags that Aegis sets itself: given twice, the placement and the engine would disagree; and unsplit ones."""
    reserved = engine(entry.engine).reserved
    where = origins.get(f"extra_{entry.engine}_args", entry.model)
    found = []
    for arg in entry.extra_args:
        if TWO_IN_ONE.match(arg):
            said, hint = f"`{arg}` is a single argument", "write the value as a list item of its own"
            found.append(Problem(where, said, hint))
        name = _flag(arg)
        if name in reserved:
            key = reserved[name]
            hint = f"use the key `{key}`" if key else "servers listen where the platform says"
            found.append(Problem(where, f"`{name}` of {entry.name} is set by aegis", hint))
    return found


def _secrets(entry: ModelEntry, origins: Mapping[str, str]) -> list[Problem]:
    """Secrets in arguments or in the file would be in job scripts and process lists."""
    found = []
    for engine_name in ("vllm", "sglang", "sim"):
        key = f"extra_{engine_name}_args"
        for arg in getattr(entry, key):
            if variable := SECRET_FLAGS.get(_flag(arg)):
                said = f"`{_flag(arg)}` would show a secret to every user of the node"
                found.append(
                    Problem(origins.get(key, entry.model), said, f"export {variable}, it is passed on")
                )
    for name in entry.env:
        if SECRET_NAME.search(name):
            said = f"`env: {name}` would write a secret into the job script"
            found.append(Problem(origins.get("env", entry.model), said, f"export {name}, it is passed on"))
    return found


def _flag(arg: str) -> str:
    """Return the flag of `--a_b=c` as the tables here spell it; engines take underscores too."""
    name = arg.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name
