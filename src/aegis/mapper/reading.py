"""Input files opened and taken apart into rows, undecoded where that is possible: JSON lines, CSV, Parquet; gzipped ones.

Several files are one input, in their order.
"""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from contextlib import contextmanager
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, cast

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aegis.mapper.template import Template

    Digest = Callable[[bytes], object]  # is told every byte that counts

CELL_CHARACTERS: Final = 1 << 24  # more is a quote that was never closed
PARQUET_ROWS: Final = 1024  # decoded at once
BLOCK: Final = 1 << 20
BOM: Final = b"\xef\xbb\xbf"
BETWEEN: Final = b"\0"  # for the digest: where one file ends and the next begins
ID: Final = "custom_id"

Raw = bytes | dict[str, Any]  # a line, or the cells of a row


class Found(NamedTuple):
    """A row as it stands in its file."""

    path: str
    number: int  # of its line, from 1; of its row, in Parquet
    raw: Raw

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.path}:{'row ' if _kind(self.path) == '.parquet' else ''}{self.number}"


def records(
    paths: Iterable[str], template: Template | None, id_column: str | None, digest: Digest
) -> Iterator[Found]:
    """Yield what the files hold, and tell every byte to `digest`.

    Raises:
        ConfigError: a file cannot be read, is broken, or lacks a column.
    """
    for number, path in enumerate(paths):
        if number:
            digest(BETWEEN)
        kind = _kind(path)
        if template is None and kind in {".csv", ".parquet"}:
            raise ConfigError(
                f"{path} is a table, and nothing says what to ask",
                hint="give a prompt with {column} where a value goes: --prompt 'Summarise: {text}'",
            )
        with _opened(path) as stream:
            if template is None or kind not in {".csv", ".parquet"}:
                yield from _lines(path, stream, digest)
            elif kind == ".csv":
                yield from _csv(path, stream, template, id_column, digest)
            else:
                yield from _parquet(path, stream, template, id_column, digest)


def _kind(path: str) -> str:
    return PurePath(path.lower().removesuffix(".gz")).suffix


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Yield the open file, unpacked; nobody is asked about it besides, for there may be hundreds of thousands."""
    try:
        handle = os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )  # a pipe without a writer would hang
        with os.fdopen(handle, "rb") as file:
            if not file.seekable():
                raise ConfigError(f"{path} is no file", hint="the input is read twice, so a pipe will not do")
            if not path.lower().endswith(".gz"):
                yield file
                return
            if _kind(path) == ".parquet":
                raise ConfigError(f"{path}: Parquet is compressed by itself", hint="gunzip it first")
            with gzip.open(file) as unpacked:
                yield cast("IO[bytes]", unpacked)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path} is no whole gzip file: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None


def _raw_lines(stream: IO[bytes], digest: Digest) -> Iterator[bytes]:
    for number, line in enumerate(stream):
        digest(line)
        yield line.removeprefix(BOM) if number == 0 else line


def _lines(path: str, stream: IO[bytes], digest: Digest) -> Iterator[Found]:
    for number, line in enumerate(_raw_lines(stream, digest), 1):
        if not line.isspace():
            yield Found(path, number, line)


def _csv(
    path: str, stream: IO[bytes], template: Template, id_column: str | None, digest: Digest
) -> Iterator[Found]:
    csv.field_size_limit(CELL_CHARACTERS)
    # What is no UTF-8 shows itself when the body is made, with its row.
    texts = (line.decode("utf-8", "surrogateescape") for line in _raw_lines(stream, digest))
    reader = csv.DictReader(texts, strict=True)
    try:
        if wrong := _wrong_columns(template, id_column, list(reader.fieldnames or ())):
            raise ConfigError(f"{path}:1: {wrong}")
        for cells in reader:
            yield Found(path, reader.line_num, cells)
    except csv.Error as error:
        raise ConfigError(f"{path}:{reader.reader.line_num}: {error}") from None


def _wrong_columns(template: Template, id_column: str | None, columns: list[str]) -> str | None:
    twice = next((each for each in columns if columns.count(each) > 1), None)
    if twice is not None:
        return f"the column {twice!r} is there twice"
    return template.missing(columns, *([] if id_column is None else [id_column]))


def _parquet(
    path: str, stream: IO[bytes], template: Template, id_column: str | None, digest: Digest
) -> Iterator[Found]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415 - optional
        import pyarrow.parquet as pq  # type: ignore[import-untyped]  # noqa: PLC0415 - optional
    except ImportError:
        raise ConfigError(
            f"{path}: reading Parquet needs pyarrow", hint="pip install 'aegis-serve[tables]'"
        ) from None
    for block in iter(lambda: stream.read(BLOCK), b""):
        digest(block)
    try:
        stream.seek(0)
        with pq.ParquetFile(stream) as file:
            names = list(file.schema_arrow.names)
            if wrong := _wrong_columns(template, id_column, names):
                raise ConfigError(f"{path}: {wrong}")
            keys = {id_column or ID} & set(names) - set(template.columns)
            batches = file.iter_batches(PARQUET_ROWS, columns=[*template.columns, *keys])
            for number, cells in enumerate(_cells(batches), 1):
                yield Found(path, number, cells)
    except pa.ArrowException as error:
        raise ConfigError(f"{path} is no Parquet file: {error}") from None


def _cells(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()
