"""Measured tables on disk: one file per system, backend and version, read slice by slice.

A file is: MAGIC, the lengths of header and index (two little-endian uint32), the CRC-32 of both, the header (JSON,
`TableInfo`), the index (deflated JSON: operation -> list of key, offset, length, rows), and the slices.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from aegis.errors import AegisError, ConfigError, NotFoundError
from aegis.files import write_atomically
from aegis.planner.systems import DATA, Era, own_folder, system_names
from aegis.planner.tables import codec
from aegis.planner.tables.versions import version_order
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from aegis.planner.tables.slices import Key, Slice

MAGIC = b"aegis-t1"
_LENGTHS = struct.Struct("<III")
SUFFIX = ".table"
BUILT_IN = DATA / "tables"


class Finding(Struct, frozen=True, kw_only=True):
    """A slice that contradicts its neighbours."""

    system: str
    backend: str
    operation: str
    key: tuple[str | int | float, ...]
    what: str  # one sentence, with figures
    factor: float  # by how much
    points: int  # rows that show it


class TableInfo(Struct, frozen=True, kw_only=True):
    """The head of a table file."""

    system: str
    backend: str
    version: str
    era: Era = "current"
    operations: dict[str, int]  # rows of each
    origin: str = ""
    licence: str = ""
    lossless: bool = False
    findings: tuple[Finding, ...] = ()
    file: str = ""  # where it was read from
    bytes: int = 0  # of the file

    @property
    def rows(self) -> int:
        """Rows of all operations."""
        return sum(self.operations.values())


class TableError(AegisError):
    """A table file cannot be read."""


class _Entry(Struct, frozen=True, array_like=True):
    key: tuple[str | int | float, ...]
    offset: int
    length: int
    rows: int


class StoredTables:
    """The tables of one file. Implements `slices.Tables`; a slice is decompressed when it is first asked for."""

    def __init__(self, info: TableInfo, data: bytes, index: Mapping[str, Sequence[_Entry]]) -> None:
        self.info = info
        self.system, self.backend, self.version = info.system, info.backend, info.version
        self.lossless = info.lossless
        self._data = data
        self._entries = {name: {entry.key: entry for entry in entries} for name, entries in index.items()}
        self._slices: dict[tuple[str, Key], Slice] = {}

    def keys(self, operation: str) -> tuple[Key, ...]:
        """Return the keys of an operation's slices, sorted; none if it is not there."""
        return tuple(self._entries.get(operation, ()))

    def rows(self, operation: str, key: Key) -> int:
        """Return how many rows a slice has, from the index alone; 0 if it is not there."""
        entry = self._entries.get(operation, {}).get(key)
        return entry.rows if entry else 0

    def load(self, operation: str, key: Key) -> Slice | None:
        """Return a slice, or None if it is not there.

        Raises:
            TableError: its bytes are damaged.
        """
        entry = self._entries.get(operation, {}).get(key)
        if entry is None:
            return None
        found = self._slices.get((operation, key))
        if found is None:
            blob = self._data[entry.offset : entry.offset + entry.length]
            try:
                found = codec.decode(blob)
            except codec.CodecError as error:
                raise _damaged(self.info.file, f"{operation} {key}: {error}") from None
            self._slices[operation, key] = found
        return found

    def findings_for(self, slices: Iterable[tuple[str, Key]]) -> tuple[Finding, ...]:
        """Return what was found wrong with the named slices when the file was written."""
        wanted = set(slices)
        return tuple(each for each in self.info.findings if (each.operation, each.key) in wanted)


def open_tables(
    system: str, backend: str, version: str | None = None, *, era: Era = "current"
) -> StoredTables:
    """Return the tables of a system and backend: the version named, or the newest.

    A user's own file hides a shipped one of the same version.

    Raises:
        ConfigError: there are no such tables.
        TableError: the file is damaged.
    """
    prefix = f"{system}-{backend}-"
    found = {file.name[len(prefix) : -len(SUFFIX)]: file for file in _files(era, prefix)}
    if not found:
        raise _no_tables(system, backend, era)
    if version is None:
        version = max(found, key=version_order)
    if version not in found:
        there = ", ".join(sorted(found, key=version_order))
        raise ConfigError(
            f"no tables of {backend} {version} on {system}",
            hint=did_you_mean(version, found) or f"there is {there}",
        )
    return read_tables(found[version])


def read_tables(file: Path) -> StoredTables:
    """Return the tables of a file.

    Raises:
        TableError: it cannot be read, or is damaged.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TableError(f"{file}: cannot be read: {error.strerror}") from None
    info, index, start = _head(file, data, len(data))
    try:
        entries = msgspec.json.decode(zlib.decompress(index), type=dict[str, list[_Entry]])
    except (zlib.error, msgspec.MsgspecError) as error:
        raise _damaged(str(file), str(error)) from None
    end = max((entry.offset + entry.length for each in entries.values() for entry in each), default=0)
    if start + end > len(data):
        raise _damaged(str(file), f"{start + end} bytes expected, {len(data)} there")
    return StoredTables(info, data[start:], entries)


def read_info(file: Path) -> TableInfo:
    """Return the head of a table file, without its slices.

    Raises:
        TableError: it cannot be read, or is damaged.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(len(MAGIC) + _LENGTHS.size)
            if data[: len(MAGIC)] == MAGIC and len(data) == len(MAGIC) + _LENGTHS.size:
                header, index, _ = _LENGTHS.unpack_from(data, len(MAGIC))
                data += stream.read(header + index)
            return _head(file, data, file.stat().st_size)[0]
    except OSError as error:
        raise TableError(f"{file}: cannot be read: {error.strerror}") from None


def shipped(*, eras: Iterable[Era] = ("current", "guide")) -> list[TableInfo]:
    """Return the heads of all table files, the user's own among them, by era, system, backend and version.

    Raises:
        TableError: one is damaged.
    """
    return [read_info(file) for era in eras for file in _files(era, "")]


def write_tables(file: Path, info: TableInfo, slices: Mapping[str, Mapping[Key, Slice]]) -> TableInfo:
    """Write the tables of one system, backend and version; return their head, with the rows counted.

    Slices that are alike byte for byte are stored once. Key and axes are those of `slices.LAYOUTS`, rows sorted.

    Raises:
        ValueError: a latency is negative or no number.
        OSError: the file cannot be written.
    """
    places: dict[bytes, int] = {}
    blobs: list[bytes] = []
    index: dict[str, list[Any]] = {}
    end = 0
    for operation in sorted(slices):
        for key in sorted(slices[operation], key=_sortable):
            rows = slices[operation][key]
            if not (rows.latency >= 0).all():
                raise ValueError(f"{operation} {key}: a latency is negative or no number")
            blob = codec.encode(rows, lossless=info.lossless)
            if blob not in places:
                places[blob] = end
                blobs.append(blob)
                end += len(blob)
            index.setdefault(operation, []).append((key, places[blob], len(blob), len(rows.latency)))
    counts = {name: sum(entry[3] for entry in entries) for name, entries in index.items()}
    info = msgspec.structs.replace(info, operations=counts, file="", bytes=0)
    head, packed = msgspec.json.encode(info), zlib.compress(msgspec.json.encode(index), 9)
    lengths = _LENGTHS.pack(len(head), len(packed), zlib.crc32(head + packed))
    write_atomically(file, b"".join([MAGIC, lengths, head, packed, *blobs]))
    return read_info(file)


def file_name(system: str, backend: str, version: str) -> str:
    """Return how the file of these tables is called."""
    return f"{system}-{backend}-{version}{SUFFIX}"


def _head(file: Path, data: bytes, size: int) -> tuple[TableInfo, bytes, int]:
    """Return head, packed index and where the slices begin."""
    if data[: len(MAGIC)] != MAGIC:
        raise TableError(f"{file}: no table file of this version of Aegis", hint="import the tables again")
    start = len(MAGIC) + _LENGTHS.size
    if len(data) < start:
        raise _damaged(str(file), "cut short")
    header, index, checksum = _LENGTHS.unpack_from(data, len(MAGIC))
    both = data[start : start + header + index]
    if len(both) < header + index or zlib.crc32(both) != checksum:
        raise _damaged(str(file), "its head is cut short or changed")
    try:
        info = msgspec.json.decode(both[:header], type=TableInfo)
    except msgspec.MsgspecError as error:
        raise _damaged(str(file), str(error)) from None
    info = msgspec.structs.replace(info, file=str(file), bytes=size)
    return info, both[header:], start + header + index


def _files(era: Era, prefix: str) -> Iterator[Path]:
    """Yield table files: shipped ones, then the user's own, each by name."""
    for folder in (BUILT_IN, own_folder()):
        for file in sorted((folder / era).glob("*" + SUFFIX)):
            if file.name.startswith(prefix):
                yield file


def _sortable(key: Key) -> tuple[tuple[bool, str | int | float], ...]:
    return tuple((isinstance(each, str), each) for each in key)


def _no_tables(system: str, backend: str, era: Era) -> AegisError:
    backends = sorted({file.name.split("-", 2)[1] for file in _files(era, f"{system}-")})
    if backends:
        hint = f"there are tables of {', '.join(backends)}"
        return ConfigError(f"no tables of {backend} on {system}", hint=hint)
    if system in system_names(era=era):
        return NotFoundError(
            f"no measured tables of {system}",
            hint="a formula stands in for them; `aegis plan collect` measures them",
        )
    names = {file.name.split("-", 1)[0] for file in _files(era, "")} | set(system_names(era=era))
    return ConfigError(
        f"unknown system `{system}`", hint=did_you_mean(system, names) or "`aegis plan tables list`"
    )


def _damaged(file: str, said: str) -> TableError:
    return TableError(f"{file}: damaged: {said}", hint="import the tables again, or install Aegis again")
