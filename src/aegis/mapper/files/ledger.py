"""What is done of an output directory: an append-only journal, one checksummed line for each finished file.

A line counts when it is whole. A crash tears at most the last one, which is cut off when the journal is opened again;
its file is then done once more, and its result takes the place of the former. Of a file's lines the last one counts.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from aegis.errors import AegisError, ConfigError
from aegis.mapper.held import open_held, trouble, write_all
from aegis.mapper.records import Record, decode, encode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    from aegis.mapper.files.inputs import Entry

FORMAT: Final = "aegis map files 1"
FOLDER: Final = ".aegis-map"  # in the output directory: journal, parts of results, what workers need


class Head(Struct, frozen=True):
    """The first line: what the run was asked to do."""

    format: str
    base: str  # names of files are relative to this directory
    asked: dict[str, str]  # what must be the same for a rerun to continue

    def line(self) -> bytes:
        """Return it as it is written."""
        return msgspec.json.encode(self, order="deterministic") + b"\n"


class Done(Struct, frozen=True, array_like=True):
    """How a file ended."""

    size: int  # of the input, when it was done
    changed: int
    failed: bool


class Line(Struct, frozen=True, array_like=True):
    """What stands in a line of the journal."""

    name: str  # bytes that are no UTF-8 as in JSON of Python: `text_of`
    size: int
    changed: int
    why: str = ""  # it failed


class Ledger:
    """The journal of one output directory, open for one run; other runs are kept out by a lock.

    Args:
        output: the directory of the results; made where it is missing.
        asked: names and values that tell this run from others.

    Raises:
        ConfigError: results of something else lie there.
        SiteError: another run works on it now, or the file system refuses.
    """

    def __init__(self, output: Path, asked: Mapping[str, str]) -> None:
        self.output, self.path = output, output / FOLDER / "journal"
        self._asked = dict(asked)
        self._done: dict[str, Done] = {}
        self.base: str | None = None  # as of the first run
        self._lines = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_held(self.path, output)
        except OSError as error:
            raise self._error(error) from None
        try:
            self._read()
        except OSError as error:
            os.close(self._file)
            raise self._error(error) from None
        except AegisError:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file and its lock."""
        os.close(self._file)

    def begin(self, base: str) -> None:
        """Note the base of the names, in the first run.

        Raises:
            AegisError: it cannot be written.
        """
        if self.base is None:
            self.base = base
            self._write(Head(FORMAT, _json(base), self._asked).line(), sync=True)

    def state(self, entry: Entry) -> Done | None:
        """Return how a file ended; None where it was not done, or has changed since."""
        done = self._done.get(entry.name)
        return done if done and (done.size, done.changed) == (entry.size, entry.changed) else None

    def changed(self, entry: Entry) -> bool:
        """Tell whether a file was done, and is another one now."""
        return entry.name in self._done and self.state(entry) is None

    def was_failed(self, name: str) -> bool:
        """Tell whether a file failed in an earlier run."""
        done = self._done.get(name)
        return done is not None and done.failed

    def add(self, entry: Entry, why: str = "", *, sync: bool = False) -> None:
        """Note that a file is done, or why it failed; when this returns, the end of this process loses nothing of it.

        Raises:
            AegisError: it cannot be written.
        """
        line = msgspec.json.encode(Line(_json(entry.name), entry.size, entry.changed, why))
        self._write(encode(Record(self._lines, bool(why), line)), sync=sync)
        self._lines += 1

    def sync(self) -> None:
        """Bring all that was noted onto the disk.

        Raises:
            AegisError: it cannot be written.
        """
        self._write(b"", sync=True)

    def forget(self) -> None:
        """Release the memory of what earlier runs did, once the inputs have been compared with it."""
        self._done = {name: done for name, done in self._done.items() if done.failed}

    def _write(self, data: bytes, *, sync: bool) -> None:
        try:
            write_all(self._file, data)
            if sync:
                os.fsync(self._file)
        except OSError as error:
            raise self._error(error) from None

    def _read(self) -> None:
        with open(self._file, "rb", buffering=1 << 20, closefd=False) as file:
            first = file.readline()
            head = self._head(first) if first.endswith(b"\n") else None
            end = offset = len(first)
            for line in file if head else ():
                offset += len(line)
                self._lines += 1
                if record := decode(line):
                    found = msgspec.json.decode(record.line, type=Line)
                    self._done[_text(found.name)] = Done(found.size, found.changed, record.failed)
                    end = offset
        any_done = any(not done.failed for done in self._done.values())
        if head and head.asked != self._asked and any_done:
            differ = [name for name in self._asked if head.asked.get(name) != self._asked[name]]
            raise ConfigError(
                f"the results in {self.output} were begun with another {', another '.join(differ)}",
                hint="continue with what they were begun with, or name another --output; "
                f"to start over, remove {self.path.parent}",
            )
        if (
            head is None or head.asked != self._asked
        ):  # nothing of worth: what failed may do so for what was changed
            self._done.clear()
            end = 0
        else:
            self.base = _text(head.base)
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)

    def _head(self, line: bytes) -> Head:
        try:
            head = msgspec.json.decode(line, type=Head)
        except msgspec.DecodeError:
            head = None
        if head is None or head.format != FORMAT:
            raise ConfigError(
                f"{self.path} is no journal of aegis map", hint="remove it, or name another --output"
            )
        return head

    def _error(self, error: OSError) -> AegisError:
        return trouble(error, self.path, self.output)


def _json(text: str) -> str:
    """Return text for a journal: names are bytes, and those that are no UTF-8 are kept as their hex."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "\0" + os.fsencode(text).hex()
    return text


def _text(text: str) -> str:
    return os.fsdecode(bytes.fromhex(text[1:])) if text.startswith("\0") else text
