"""Tables and times as people read them: plain text, the same on a terminal and in a pipe."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import click

from aegis.spec.walltime import format_age

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GAP = "  "
REASON_WIDTH = 90


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return aligned columns; control characters of foreign text are shown, not sent to the terminal."""
    lines = [tuple(head), *(tuple(printable(str(cell)) for cell in row) for row in rows)]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        GAP.join(
            cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def shortened(text: str, width: int = REASON_WIDTH) -> str:
    """Return the first line of a text, cut where a table would become too wide."""
    line = text.partition("\n")[0]
    return line if len(line) <= width else f"{line[: width - 1]}…"


def printable(text: str) -> str:
    """Return the text with control characters escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    import json  # noqa: PLC0415 - start-up time

    click.echo(json.dumps(value, indent=2))


def age(seconds: float) -> str:
    """Return a short age: `45s`, `12m05s`, `3h05m`, `2d04h`."""
    return format_age(seconds)


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
