"""Turn measured tables of other tools into files of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.errors import ConfigError
from aegis.planner.systems import load_system, system_names
from aegis.planner.tables.check import Neighbours, find_contradictions
from aegis.planner.tables.importing.assemble import concatenate, rows_of, slices_of, with_default_lane
from aegis.planner.tables.importing.families import FAMILIES
from aegis.planner.tables.importing.frames import read_frame
from aegis.planner.tables.importing.order import gemm_order
from aegis.planner.tables.importing.schema import SCHEMAS
from aegis.planner.tables.importing.sources import Package, open_package
from aegis.planner.tables.store import TableInfo, file_name, write_tables
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from aegis.planner.tables.importing.schema import Schema
    from aegis.planner.tables.slices import Key, Slice

LICENCE = "Apache-2.0"  # of the packages that are understood here
_LANED = {"context_attention", "generation_attention"}
_LANED_BACKENDS = {
    "sglang"
}  # it chooses between attention kernels by the GPU; with the others all are one lane


def import_package(
    directory: Path,
    out: Path,
    *,
    lossless: bool = False,
    systems: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    origin: str | None = None,
) -> Iterator[TableInfo]:
    """Convert an unpacked AIConfigurator package into files below `out`, one per system and backend; yield their heads.

    `directory` holds the folder `systems` (or is it). Of each backend, its current version is taken.

    Raises:
        ConfigError: nothing to import, a system that the package lacks, or a file that cannot be read.
        OSError: a file cannot be written.
    """
    package = open_package(directory)
    there = package.system_names()
    for name in systems or ():
        if name not in there:
            hint = did_you_mean(name, there) or f"there are {', '.join(there)}"
            raise ConfigError(f"{directory}: no tables of `{name}`", hint=hint)
    folder = out / package.era
    folder.mkdir(parents=True, exist_ok=True)
    for system in systems or there:
        names = [name for name in package.backends(system) if backends is None or name in backends]
        versions = {name: package.version(system, name) for name in names}
        tables = {name: collect_slices(package, system, name, version) for name, version in versions.items()}
        hardware = load_system(system, era=package.era) if system in system_names(era=package.era) else None
        findings = find_contradictions(Neighbours(system, hardware, tables))
        for backend, slices in tables.items():
            info = TableInfo(
                system=system,
                backend=backend,
                version=versions[backend],
                era=package.era,
                operations={},
                origin=origin or package.origin,
                licence=LICENCE,
                lossless=lossless,
                findings=tuple(each for each in findings if each.backend == backend),
            )
            if slices:
                yield write_tables(folder / file_name(system, backend, info.version), info, slices)


def collect_slices(package: Package, system: str, backend: str, version: str) -> dict[str, dict[Key, Slice]]:
    """Return all operations of one system, backend and version, read from the package's files."""
    by_operation: dict[str, list[Schema]] = {}
    for schema in (*SCHEMAS, *FAMILIES):
        by_operation.setdefault(schema.operation, []).append(schema)
    found: dict[str, dict[Key, Slice]] = {}
    for operation, schemas in by_operation.items():
        parts = []
        for schema in schemas:
            for source in package.sources(system, backend, version, schema.file):
                frame = read_frame(source.file)
                if source.kernels is not None:
                    frame = frame.among("kernel_source", source.kernels)
                if frame.rows:
                    parts.append(rows_of(frame, schema))
        rows = concatenate(parts)
        if operation in _LANED and rows:
            rows = with_default_lane(rows, named=backend in _LANED_BACKENDS)
        if slices := slices_of(operation, rows):
            found[operation] = slices
        if operation == "gemm" and rows and package.era == "current":
            found["gemm_order"] = gemm_order(rows)
    return found
