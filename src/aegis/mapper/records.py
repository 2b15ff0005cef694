"""The lines of a journal. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple
from zlib import crc32

import msgspec
from msgspec import Struct

FORMAT: Final = "aegis map 1"
INPUT: Final = "input"  # of what was asked: a digest
SHOWN: Final = 100  # characters of a value


class Head(Struct, frozen=True):
    """The first line: what the run was asked to do."""

    format: str
    rows: int
    asked: dict[str, str]  # what must be the same for a rerun to continue
    done: bool = False  # the output is there, and the records were dropped

    def line(self) -> bytes:
        """Return it as it is written."""
        return msgspec.json.encode(self, order="deterministic") + b"\n"


class Record(NamedTuple):
    """One finished row."""

    position: int
    failed: bool
    line: bytes  # of the output, without its end


def decode_head(line: bytes) -> Head:
    """Return a journal's head.

    Raises:
        ValueError: it is none.
    """
    try:
        head = msgspec.json.decode(line, type=Head)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    if head.format != FORMAT:
        raise ValueError(head.format)
    return head


def encode(record: Record) -> bytes:
    """Return a record's line: checksum, position, `+` or `-` (failed), and the line of the output."""
    text = b"%d %c %b" % (record.position, b"-" if record.failed else b"+", record.line)
    return b"%08x %b\n" % (crc32(text), text)


def decode(line: bytes) -> Record | None:
    """Return the record of a line, or None where it is torn or damaged."""
    checksum, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or checksum != b"%08x" % crc32(text[:-1]):
        return None
    position, mark, payload = text[:-1].split(b" ", 2)
    return Record(int(position), mark == b"-", payload)


def differences(before: Head, now: Head) -> list[str]:
    """Return what was asked for then and is not now."""
    found = []
    for name in sorted(before.asked.keys() | now.asked.keys()):
        old, new = before.asked.get(name, ""), now.asked.get(name, "")
        if old != new:
            readable = name != INPUT and max(len(old), len(new)) <= SHOWN
            found.append(
                f"{name} was {old or 'nothing'!r}, is {new or 'nothing'!r}" if readable else f"another {name}"
            )
    if before.rows != now.rows and not found:
        found.append(f"{before.rows} rows, now {now.rows}")
    return found
