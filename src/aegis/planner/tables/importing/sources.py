"""Which files of a package make up one table, and in which order: the first row of a key wins.

Current packages (`systems/data/<system>/<family>/<backend>/<version>/*.parquet`): the version asked for; those that
its reuse.yaml names; earlier versions of the backend, nearest first; other backends, by name and newest first, but
only rows of kernels that perf_data_reuse_manifest.yaml lets the backend take over. Packages of the guide's time
(`systems/data/<system>/<backend>/<version>/*_perf.txt`): the version asked for alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from aegis.errors import ConfigError
from aegis.planner.problem import BACKENDS
from aegis.planner.tables.versions import version_order

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aegis.planner.systems import Era

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TOOL = "NVIDIA AIConfigurator"
_NEVER_INHERITED = {"nccl", "oneccl"}


class Source(NamedTuple):
    """One file, and the kernels whose rows count; None: all."""

    file: Path
    kernels: frozenset[str] | None = None


class Package(NamedTuple):
    """An unpacked package of measured tables."""

    systems: Path  # the folder `systems`
    era: Era
    manifest: dict[tuple[str, str], frozenset[str]]  # (file, backend) -> kernels it may take over from others
    slots: dict[str, Any]  # query_versions.yaml

    @property
    def origin(self) -> str:
        """Return what the tables come from, with the version that an installed or unpacked wheel tells."""
        for folder in self.systems.parent.parent.glob("aiconfigurator*.dist-info"):
            return f"{TOOL} {folder.name.removesuffix('.dist-info').rpartition('-')[2]}"
        return TOOL

    def system_names(self) -> list[str]:
        """Return the systems with tables."""
        return sorted(each.name for each in (self.systems / "data").iterdir() if each.is_dir())

    def backends(self, system: str) -> list[str]:
        """Return the backends that have tables of a system."""
        return [name for name in BACKENDS if any(self._versions(system, "*", name))]

    def version(self, system: str, backend: str) -> str:
        """Return the version that stands for a backend: its `current` slot, else the newest."""
        for part in (self.slots.get("overrides", {}).get(system, {}), self.slots.get("defaults", {})):
            current = part.get(backend, {}).get("current")
            if current:
                return str(current)
        return max((path.name for path in self._versions(system, "*", backend)), key=version_order)

    def sources(self, system: str, backend: str, version: str, file: str) -> Iterator[Source]:
        """Yield the files of one table, those that count first; `file` is without `_perf` and suffix."""
        if file in _NEVER_INHERITED:
            yield from self._collective(system, file)
            return
        if self.era == "guide":
            path = self.systems / "data" / system / backend / version / f"{file}_perf.txt"
            if path.is_file():
                yield Source(path)
            return
        name = f"{file}_perf.parquet"
        own = {path.parent.name: path for path in self._tables(system, backend, name)}
        order = [version, *self._donors(system, backend, version, f"{file}_perf")]
        wanted = version_order(version)
        order += [each for each in own if version_order(each) < wanted and each not in order]
        yield from (Source(own[each]) for each in dict.fromkeys(order) if each in own)
        for other in sorted(set(BACKENDS) - {backend}):
            kernels = self.manifest.get((name, other))
            mine = self.manifest.get((name, backend), frozenset())
            if kernels and kernels & mine:
                yield from (Source(path, kernels & mine) for path in self._tables(system, other, name))

    def _tables(self, system: str, backend: str, name: str) -> list[Path]:
        """Return the files of one name that a backend has, newest first."""
        found = (self.systems / "data" / system).glob(f"*/{backend}/*/{name}")
        return sorted(found, key=lambda path: version_order(path.parent.name), reverse=True)

    def _versions(self, system: str, family: str, backend: str) -> Iterator[Path]:
        folder = self.systems / "data" / system
        pattern = f"{backend}/*" if self.era == "guide" else f"{family}/{backend}/*"
        return (path for path in folder.glob(pattern) if path.is_dir())

    def _donors(self, system: str, backend: str, version: str, table: str) -> list[str]:
        donors = []
        for folder in self._versions(system, "*", backend):
            file = folder / "reuse.yaml"
            if folder.name == version and file.is_file():
                entries = _read_yaml(file).get("reuse") or []
                donors += [str(each["from_version"]) for each in entries if each.get("table") == table]
        return donors

    def _collective(self, system: str, kind: str) -> Iterator[Source]:
        """Yield the one file of NCCL or oneCCL that the system's description names."""
        description = self.systems / f"{system}.yaml"
        misc = _read_yaml(description).get("misc", {}) if description.is_file() else {}
        version = misc.get(f"{kind}_version")
        if version is None or (kind == "nccl" and "oneccl_version" in misc):
            return
        folder = self.systems / "data" / system
        suffix = "txt" if self.era == "guide" else "parquet"
        folder = folder / kind if self.era == "guide" else folder / "comm" / kind
        file = folder / str(version) / f"{kind}_perf.{suffix}"
        if file.is_file():
            yield Source(file)


def open_package(directory: Path) -> Package:
    """Return the package that lies in or below a directory.

    Raises:
        ConfigError: there is none.
    """
    candidates = [directory, directory / "systems", *sorted(directory.glob("*/systems"))]
    found = next((each for each in candidates if (each / "data").is_dir()), None)
    if found is None:
        raise ConfigError(
            f"{directory}: no measured tables there (no folder systems/data)",
            hint="unpack the wheel of aiconfigurator-core, and name the folder that `systems` is in",
        )
    slots = found / "query_versions.yaml"
    return Package(
        found,
        "current" if any(found.glob("data/*/*/*/*/*.parquet")) else "guide",
        _manifest(found / "perf_data_reuse_manifest.yaml"),
        _read_yaml(slots) if slots.is_file() else {},
    )


def _manifest(file: Path) -> dict[tuple[str, str], frozenset[str]]:
    if not file.is_file():
        return {}
    kernels: dict[tuple[str, str], set[str]] = {}
    for group in _read_yaml(file).get("groups") or []:
        if group.get("tier") != "absence_load_bearing":
            for backend in group.get("frameworks") or []:
                kernels.setdefault((group["op_file"], backend), set()).add(group["kernel_source"])
    return {key: frozenset(value) for key, value in kernels.items()}


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        value = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - a safe loader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML: {error}") from None
    return value if isinstance(value, dict) else {}
