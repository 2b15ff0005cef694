"""The rows of an input: checked once as a whole, then streamed, never held.

A file of OpenAI's batch format is JSON lines of `custom_id`, `method`, `url` and `body`; any other CSV, JSON lines
or Parquet file needs a template. A row is known by its `custom_id`, else by its number, from 1.
"""

from __future__ import annotations

import csv
import hashlib
from array import array
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from aegis.errors import ConfigError, Problem
from aegis.mapper.template import KEYS, Template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

SHOWN: Final = 20  # problems of an input that are told at once
SUSPECTS: Final = (
    1000  # hashes that occur twice, looked up again: the chance of a false one is 1e-6 in 10M rows
)
CELL_CHARACTERS: Final = 1 << 24  # more is a quote that was never closed
PARQUET_ROWS: Final = 1024  # decoded at once
MODELS: Final = 100  # names of models kept of an input
ID: Final = "custom_id"
BOM: Final = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """One request to make."""

    position: int  # from 0
    key: str
    path: str  # of the route
    model: str  # that it asks for; empty: whichever is served
    body: bytes  # JSON object, not empty


class Source(Struct, frozen=True):
    """An input file; without a template it must be of OpenAI's batch format."""

    path: Path
    template: Template | None = None


class Survey(Struct, frozen=True):
    """What one pass over an input tells."""

    rows: int
    digest: str  # of the file's content
    models: tuple[str, ...]  # that rows ask for; "" where one leaves it open


class Line(Struct, frozen=True):
    """A line of OpenAI's batch format."""

    url: str
    body: msgspec.Raw
    custom_id: str | int | None = None
    method: Literal["POST"] = "POST"


class Head(Struct, frozen=True):
    """What is looked at of a body."""

    model: str = ""
    stream: bool | None = None
    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_line = msgspec.json.Decoder(Line)
_head = msgspec.json.Decoder(Head)
_object = msgspec.json.Decoder(dict[str, Any])

Raw = bytes | dict[str, Any]  # a line, or the cells of a row
Numbered = tuple[int, Raw]  # with its number in the file


def survey(source: Source) -> Survey:
    """Read all of an input and check every row.

    Raises:
        ConfigError: the file cannot be read, rows are wrong or share a custom_id; the first of them are listed.
    """
    digest = hashlib.blake2b(digest_size=16)
    problems: list[Problem] = []
    hashes = array("q")
    models: dict[str, None] = {}
    for position, (number, raw) in enumerate(_records(source, digest.update)):
        try:
            row = _row(source, position, raw)
        except (ValueError, msgspec.DecodeError) as error:
            problems.append(Problem(_where(source, number), str(error)))
            if len(problems) == SHOWN:
                break
            continue
        hashes.append(hash(row.key))
        if row.model not in models and len(models) < MODELS:
            models[row.model] = None
    if problems:
        raise _refusal(problems)
    if not hashes:
        raise ConfigError(f"{source.path} has no rows")
    if problems := list(islice(_duplicates(source, hashes), SHOWN)):
        raise _refusal(problems)
    return Survey(len(hashes), digest.hexdigest(), tuple(models))


def read(source: Source, digest: str, done: Callable[[int], bool] = lambda _: False) -> Iterator[Row]:
    """Yield the rows of an input that passed its survey, but for those at positions that are done.

    Raises:
        ConfigError: the file is not the one of the survey any more.
    """
    found = hashlib.blake2b(digest_size=16)
    for position, (number, raw) in enumerate(_records(source, found.update)):
        if done(position):
            continue
        try:
            row = _row(source, position, raw)
        except (ValueError, msgspec.DecodeError) as error:
            raise _changed(source, f" ({_where(source, number)}: {error})") from None
        yield row
    if found.hexdigest() != digest:
        raise _changed(source, "")


def _changed(source: Source, detail: str) -> ConfigError:
    return ConfigError(
        f"{source.path} changed while it was read{detail}",
        hint="run it again with a file that stays as it is",
    )


def _refusal(problems: list[Problem]) -> ConfigError:
    more = f"the first {SHOWN} problems are shown" if len(problems) == SHOWN else None
    return ConfigError("\n".join(map(str, problems)), hint=more)


def _where(source: Source, number: int) -> str:
    return f"{source.path}:{'row ' if _kind(source) == '.parquet' else ''}{number}"


def _kind(source: Source) -> str:
    return source.path.suffix.lower()


def _row(source: Source, position: int, raw: Raw) -> Row:
    """Return the request of a row, or raise ValueError or DecodeError with what is wrong."""
    if source.template is None:
        assert isinstance(raw, bytes)  # noqa: S101 - _records
        return _batch_row(position, raw)
    values = _object.decode(raw) if isinstance(raw, bytes) else raw
    if None in values:
        raise ValueError("it has more cells than the first line has columns")
    template = source.template
    return Row(position, _key(position, values.get(ID)), template.path, template.model, template.body(values))


def _batch_row(position: int, raw: bytes) -> Row:
    line = _line.decode(raw)
    needed = KEYS.get(line.url)
    if needed is None:
        raise ValueError(f"url {line.url!r} is none of {', '.join(KEYS)}")
    head = _head.decode(line.body)
    if getattr(head, needed) is msgspec.UNSET:
        raise ValueError(f"its body has no {needed!r}")
    if head.stream:
        raise ValueError("its body asks for a stream, and answers are taken whole: leave out 'stream'")
    return Row(position, _key(position, line.custom_id), line.url, head.model, bytes(line.body))


def _key(position: int, custom_id: object) -> str:
    if custom_id is None or custom_id == "":
        return str(position + 1)
    return custom_id if isinstance(custom_id, str) else str(custom_id)


def _duplicates(source: Source, hashes: array[int]) -> Iterator[Problem]:
    """Yield the rows whose key an earlier row has; only suspects are read again."""
    import numpy as np  # noqa: PLC0415 - light commands load this module

    ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
    twice = {int(each) for each in np.unique(ordered[1:][ordered[1:] == ordered[:-1]])[:SUSPECTS]}
    if not twice:
        return
    seen: dict[str, int] = {}
    for position, (number, raw) in enumerate(_records(source, lambda _: None)):
        if hashes[position] not in twice:
            continue
        key = _row(source, position, raw).key
        if key in seen:
            yield Problem(
                _where(source, number), f"custom_id {key!r} is that of {_where(source, seen[key])} too"
            )
        seen.setdefault(key, number)


def _records(source: Source, digest: Callable[[bytes], object]) -> Iterator[Numbered]:
    """Yield what the file holds, undecoded where that is possible, and tell every byte to `digest`."""
    readers: dict[str, Callable[[Source, Callable[[bytes], object]], Iterator[Numbered]]] = {
        ".csv": _csv,
        ".parquet": _parquet,
    }
    reader = readers.get(_kind(source), _lines)
    if source.template is None and reader is not _lines:
        raise ConfigError(
            f"{source.path} is a table, and nothing says what to ask",
            hint="give a prompt with {column} where a value goes",
        )
    if not source.path.is_file():
        raise ConfigError(f"{source.path} is no file", hint="the input is read twice, so a pipe will not do")
    try:
        yield from reader(source, digest)
    except OSError as error:
        raise ConfigError(f"{source.path} cannot be read: {error.strerror or error}") from None


def _raw_lines(source: Source, digest: Callable[[bytes], object]) -> Iterator[bytes]:
    with source.path.open("rb") as file:
        for number, line in enumerate(file):
            digest(line)
            yield line.removeprefix(BOM) if number == 0 else line


def _lines(source: Source, digest: Callable[[bytes], object]) -> Iterator[Numbered]:
    for number, line in enumerate(_raw_lines(source, digest), 1):
        if not line.isspace():
            yield number, line


def _csv(source: Source, digest: Callable[[bytes], object]) -> Iterator[Numbered]:
    assert source.template  # noqa: S101 - _records
    csv.field_size_limit(CELL_CHARACTERS)
    # What is no UTF-8 shows itself when the body is made, with its row.
    texts = (line.decode("utf-8", "surrogateescape") for line in _raw_lines(source, digest))
    reader = csv.DictReader(texts, strict=True)
    try:
        columns = list(reader.fieldnames or ())
        if wrong := _wrong_columns(source.template, columns):
            raise ConfigError(f"{source.path}:1: {wrong}")
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise ConfigError(f"{_where(source, reader.reader.line_num)}: {error}") from None


def _wrong_columns(template: Template, columns: list[str]) -> str | None:
    twice = next((each for each in columns if columns.count(each) > 1), None)
    return f"the column {twice!r} is there twice" if twice is not None else template.missing(columns)


def _parquet(source: Source, digest: Callable[[bytes], object]) -> Iterator[Numbered]:
    assert source.template  # noqa: S101 - _records
    try:
        import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415 - optional
        import pyarrow.parquet as pq  # type: ignore[import-untyped]  # noqa: PLC0415 - optional
    except ImportError:
        raise ConfigError(
            f"{source.path}: reading Parquet needs pyarrow", hint="pip install 'aegis-serve[tables]'"
        ) from None
    with source.path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest(block)
    try:
        with pq.ParquetFile(source.path) as file:
            names = list(file.schema_arrow.names)
            if wrong := _wrong_columns(source.template, names):
                raise ConfigError(f"{source.path}: {wrong}")
            needed = [*source.template.columns, *({ID} & set(names) - set(source.template.columns))]
            yield from enumerate(_cells(file.iter_batches(PARQUET_ROWS, columns=needed)), 1)
    except pa.ArrowException as error:
        raise ConfigError(f"{source.path} is no Parquet file: {error}") from None


def _cells(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()
