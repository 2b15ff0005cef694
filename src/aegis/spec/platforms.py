"""Find, read and recognise site profiles."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from aegis.errors import DeploymentError, Problem
from aegis.spec.check import check_mapping, field_types, value_at
from aegis.spec.deployment import Deployment
from aegis.spec.document import Document, read_document
from aegis.spec.platform import Network, Node, Platform, Queue
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PRESETS = [name for name in field_types(Deployment) if name not in {"models", "platform", "scheduler"}]
BUILT_IN = Path(__file__).parent.parent / "data" / "platforms"


class Site(Struct, frozen=True):
    """Where profiles lie, and how this machine is recognised."""

    folders: tuple[Path, ...]  # later ones win
    hostname: str
    has_command: Callable[[str], bool]

    @classmethod
    def here(cls, environ: Mapping[str, str]) -> Site:
        """Return the site of this machine and user."""
        import shutil  # noqa: PLC0415 - start-up time: listing platforms needs neither

        home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/")) / ".config")
        own = Path(environ.get("AEGIS_PLATFORM_DIR") or home / "aegis" / "platforms")
        path = environ.get("PATH")
        return cls(
            (BUILT_IN, own), os.uname().nodename, lambda name: shutil.which(name, path=path) is not None
        )


def profile_files(site: Site) -> dict[str, Path]:
    """Return the profile files by name; a user's file hides a built-in one of the same name."""
    return {file.stem: file for folder in site.folders for file in sorted(folder.glob("*.yaml"))}


def load_platform(
    name: str, site: Site, scheduler: str | None = None, *, where: str = "--platform"
) -> Platform:
    """Load a profile by name or file; `auto` recognises the machine.

    Raises:
        DeploymentError: unknown name, or problems in the profile.
    """
    files = profile_files(site)
    if name == "auto":
        name = detect_platform(site, files, scheduler)
    if "/" in name or name.endswith((".yaml", ".yml")):
        file = Path(os.path.expanduser(name))  # noqa: PTH111 - an unknown ~user stays, and is no file
        if not file.is_file():
            raise DeploymentError([Problem(where, f"there is no file {file}")])
        return _load(file, files, ())
    if name not in files:
        hint = did_you_mean(name, files) or f"one of {', '.join(sorted(files))}"
        raise DeploymentError([Problem(where, f"unknown platform `{name}`", hint)])
    return _load(files[name], files, ())


def is_built_in(platform: Platform) -> bool:
    """Tell whether any installation of this version has the same profile under that name."""
    file = BUILT_IN / f"{platform.name}.yaml"
    files = {each.stem: each for each in BUILT_IN.glob("*.yaml")}
    return file.is_file() and _load(file, files, ()) == platform


def detect_platform(site: Site, files: Mapping[str, Path], scheduler: str | None = None) -> str:
    """Return the profile of this machine: by host name, then by the scheduler that is here."""
    if scheduler == "local":
        return "local"
    for name, file in reversed(list(files.items())):  # a user's profile goes before a built-in one
        patterns = _raw(file).get("hostnames")
        if name == "local" or not isinstance(patterns, list):
            continue
        if any(fnmatch.fnmatch(site.hostname, str(pattern)) for pattern in patterns):
            return name
    wanted = {"pbs": "generic-pbs", "slurm": "generic-slurm"}
    if scheduler in wanted:
        return wanted[scheduler]
    if site.has_command("sbatch"):
        return "generic-slurm"
    if site.has_command("qsub"):
        return "generic-pbs"
    return "local"


def _raw(file: Path) -> dict[str, Any]:
    value = read_document(file).value
    return value if isinstance(value, dict) else {}


def _load(file: Path, files: Mapping[str, Path], above: tuple[Path, ...]) -> Platform:
    """Read a profile over the one that it extends."""
    document = read_document(file)
    values, problems = _check(document)
    problems = [*document.problems, *problems]
    if values.get("name", file.stem) != file.stem:
        said = f"the profile is found as `{file.stem}`, but `name` is `{values['name']}`"
        problems.append(Problem(document.where(("name",)), said, "leave `name` out"))
    base: dict[str, Any] = {}
    if parent := values.get("extends"):
        parent_file = files.get(parent)
        if parent_file == file:  # a user's file that extends the built-in one it hides
            parent_file = BUILT_IN / file.name
        if parent_file is None or parent_file in above or not parent_file.is_file():
            said, hint = "`extends` goes in a circle", None
            if parent_file is None:
                said, hint = f"`extends` names an unknown platform `{parent}`", did_you_mean(parent, files)
            problems.append(Problem(document.where(("extends",)), said, hint))
        elif not problems:
            base = msgspec.to_builtins(_load(parent_file, files, (*above, file)))
    if problems:
        raise DeploymentError(problems)
    merged = _merge(base, values)
    merged["name"] = file.stem
    return msgspec.convert(merged, Platform)


def _check(document: Document) -> tuple[dict[str, Any], list[Problem]]:
    """Check a profile and its nested mappings, each key by itself; return plain values."""
    types = field_types(Platform)
    nested: dict[str, type[msgspec.Struct]] = {"node": Node, "network": Network}
    flat = {key: type_ for key, type_ in types.items() if key not in {*nested, "queues"}}
    values, problems = check_mapping(document, (), flat, known=(*nested, "queues"))
    if not isinstance(document.value, dict):
        return {}, problems
    for key, struct in nested.items():
        if key in document.value:
            values[key], found = check_mapping(document, (key,), field_types(struct))
            problems += found
    if "queues" in document.value:
        values["queues"], found = _check_queues(document)
        problems += found
    for key, given in [("defaults", values.get("defaults", {})), ("required", values.get("required", ()))]:
        for index, name in enumerate(given):
            if name not in PRESETS:
                step = name if key == "defaults" else index
                problems.append(
                    Problem(
                        document.where((key, step)),
                        f"`{key}`: unknown key `{name}`",
                        did_you_mean(name, PRESETS),
                    )
                )
    return values, problems


def _check_queues(document: Document) -> tuple[list[dict[str, Any]], list[Problem]]:
    listed = value_at(document, ("queues",))
    if not isinstance(listed, list):
        return [], [Problem(document.where(("queues",)), "`queues` should be a list")]
    queues, problems = [], []
    for index in range(len(listed)):
        queue, found = check_mapping(document, ("queues", index), field_types(Queue))
        problems += found
        if not found and "name" not in queue:
            problems.append(Problem(document.where(("queues", index)), "this queue has no `name`"))
        queues.append(queue)
    return queues, problems


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `over` upon `base`: mappings merge, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result
