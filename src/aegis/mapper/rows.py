"""The rows of an input: checked once as a whole, then streamed, never held.

A file of OpenAI's batch format is JSON lines of `custom_id`, `method`, `url` and `body`; any other CSV, JSON lines
or Parquet file needs a template. A row is known by its `custom_id`, else by its number in the whole input, from 1.
"""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from aegis.errors import ConfigError, Problem
from aegis.mapper.held import trouble
from aegis.mapper.keys import RUN, Keys
from aegis.mapper.reading import ID, records
from aegis.mapper.template import KEYS, Template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aegis.mapper.reading import Digest, Found

SHOWN: Final = 1000  # problems of an input that are told; the others are counted
SUSPECTS: Final = (
    1000  # hashes that occur twice, looked up again: the chance of a false one is 1e-6 in 10M rows
)
MODELS: Final = 100  # names of models kept of an input
NO_BATCH: Final = "rows that are not of OpenAI's batch format need --prompt 'text with a {column}'"


class Row(NamedTuple):
    """One request to make."""

    position: int  # from 0
    key: str
    path: str  # of the route
    model: str  # that it asks for; empty: whichever is served
    body: bytes  # JSON object, not empty


class Source(Struct, frozen=True):
    """Input files, in their order; without a template they must be of OpenAI's batch format."""

    paths: tuple[str, ...]  # not Path: there may be hundreds of thousands
    template: Template | None = None
    id_column: str | None = None  # that every row has; None: `custom_id`, where there is one

    @property
    def name(self) -> str:
        """What messages call it."""
        more = len(self.paths) - 1
        return self.paths[0] + (f" and {more} more" if more else "")

    def fingerprint(self) -> dict[str, str]:
        """Return what must stay the same besides the content of the files when a run is continued."""
        asked = self.template.fingerprint() if self.template else {}
        return asked | ({"id column": self.id_column} if self.id_column else {})

    def records(self, digest: Digest) -> Iterator[Found]:
        """Yield what the files hold; see `reading.records`."""
        return records(self.paths, self.template, self.id_column, digest)


class Survey(Struct, frozen=True):
    """What one pass over an input tells."""

    rows: int
    digest: str  # of the files' content
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


def survey(source: Source, scratch: Path | None = None, *, run: int = RUN) -> Survey:
    """Read all of an input and check every row.

    Args:
        source: the input.
        scratch: a directory, where 8 bytes a row are used meanwhile; by default the system's for such files.
        run: rows up to which nothing is written there.

    Raises:
        ConfigError: a file cannot be read, rows are wrong or share a custom_id; all of them are listed.
        AegisError: the directory is full or refuses.
    """
    scratch = scratch or Path(gettempdir())
    try:
        with Keys(scratch, run) as keys:
            return _survey(source, keys)
    except OSError as error:
        raise trouble(error, scratch, scratch) from None


def _survey(source: Source, keys: Keys) -> Survey:
    digest = hashlib.blake2b(digest_size=16)
    problems: list[Problem] = []
    good = wrong = 0
    models: dict[str, None] = {}
    for position, found in enumerate(source.records(digest.update)):
        try:
            row = _row(source, position, found)
        except (ValueError, msgspec.DecodeError) as error:
            wrong += 1
            if len(problems) < SHOWN:
                problems.append(Problem(found.where, str(error)))
            continue
        good += 1
        keys.add(row.key)
        if row.model not in models and len(models) < MODELS:
            models[row.model] = None
    if wrong:
        raise _refusal(problems, wrong, None if source.template or good else NO_BATCH)
    if not good:
        raise ConfigError(f"{source.name} has no rows")
    if problems := list(islice(_duplicates(source, set(islice(keys.twice(), SUSPECTS))), SHOWN)):
        raise _refusal(problems, len(problems), None)
    return Survey(good, digest.hexdigest(), tuple(models))


def read(source: Source, digest: str, done: Callable[[int], bool] = lambda _: False) -> Iterator[Row]:
    """Yield the rows of an input that passed its survey, but for those at positions that are done.

    Raises:
        ConfigError: the files are not those of the survey any more.
    """
    content = hashlib.blake2b(digest_size=16)
    for position, found in enumerate(source.records(content.update)):
        if done(position):
            continue
        yield _good_row(source, position, found)
    if content.hexdigest() != digest:
        raise _changed(source, "")


def _changed(source: Source, detail: str) -> ConfigError:
    return ConfigError(
        f"{source.name} changed while it was read{detail}",
        hint="run it again with files that stay as they are",
    )


def _refusal(problems: list[Problem], wrong: int, hint: str | None) -> ConfigError:
    lines = [str(problem) for problem in problems]
    if wrong > len(lines):
        lines.append(f"and {wrong - len(lines)} rows more")
    return ConfigError("\n".join(lines), hint=hint)


def _row(source: Source, position: int, found: Found) -> Row:
    """Return the request of a row, or raise ValueError or DecodeError with what is wrong."""
    raw, template = found.raw, source.template
    if template is None:
        assert isinstance(raw, bytes)  # noqa: S101 - reading
        return _batch_row(position, raw)
    values = _object.decode(raw) if isinstance(raw, bytes) else raw
    if None in values:
        raise ValueError("it has more cells than the first line has columns")
    column = source.id_column
    if column is not None and values.get(column) in (None, ""):
        raise ValueError(f"it has no id in {column!r}")
    key = _key(position, values.get(column or ID))
    return Row(position, key, template.path, template.model, template.body(values))


def _good_row(source: Source, position: int, found: Found) -> Row:
    """Return the request of a row that passed the survey."""
    try:
        return _row(source, position, found)
    except (ValueError, msgspec.DecodeError) as error:
        raise _changed(source, f" ({found.where}: {error})") from None


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


def _duplicates(source: Source, suspects: set[int]) -> Iterator[Problem]:
    """Yield the rows whose key an earlier row has, and whose hash is one of these."""
    if not suspects:
        return
    seen: dict[str, Found] = {}
    for position, found in enumerate(source.records(lambda _: None)):
        key = _good_row(source, position, found).key
        if hash(key) not in suspects:
            continue
        if key in seen:
            yield Problem(found.where, f"custom_id {key!r} is that of {seen[key].where} too")
        seen.setdefault(key, found._replace(raw=b""))
