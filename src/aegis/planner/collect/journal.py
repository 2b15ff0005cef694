"""Finished points, one line each: what is measured is kept when the run is interrupted, and goes on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from aegis.planner.tables.slices import LAYOUTS, Slice

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from aegis.planner.tables.slices import Key


_Line = TypeVar("_Line")


class Head(Struct, frozen=True, kw_only=True):
    """What the points of a journal were measured with; others do not go on from it."""

    device: str
    torch: str


class Row(Struct, frozen=True, array_like=True):
    """A measured point; None: it cannot be measured here."""

    operation: str
    key: tuple[str | int | float, ...]
    axes: tuple[int, ...]
    ms: float | None


class Journal:
    """Rows of a file that grows line by line."""

    def __init__(self, file: Path, head: Head, *, fresh: bool = False) -> None:
        """Take up the rows of an earlier run with the same device and PyTorch; of another one, start anew."""
        self.file = file
        self.rows: dict[tuple[str, Key, tuple[int, ...]], float | None] = {}
        lines = [] if fresh or not file.exists() else file.read_bytes().splitlines()
        if lines and _read(lines[0], Head) == head:
            for line in lines[1:]:
                row = _read(line, Row)
                if row is not None:  # the last line may be cut off
                    self.rows[row.operation, row.key, row.axes] = row.ms
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = [msgspec.json.encode(Row(*place, ms)) for place, ms in self.rows.items()]
        file.write_bytes(b"\n".join([msgspec.json.encode(head), *kept, b""]))

    def __contains__(self, place: tuple[str, Key, tuple[int, ...]]) -> bool:
        """Whether a point (operation, key, axes) is finished."""
        return place in self.rows

    def add(self, operation: str, key: Key, axes: tuple[int, ...], ms: float | None) -> None:
        """Write down a point."""
        self.rows[operation, key, axes] = ms
        with self.file.open("ab") as stream:
            stream.write(msgspec.json.encode(Row(operation, key, axes, ms)) + b"\n")

    def slices(self) -> dict[str, dict[Key, Slice]]:
        """Return all that was measured as slices of tables."""
        return to_slices((*place, ms) for place, ms in self.rows.items() if ms is not None)


def to_slices(rows: Iterable[tuple[str, Key, tuple[int, ...], float]]) -> dict[str, dict[Key, Slice]]:
    """Return rows (operation, key, axes, ms) as sorted slices by operation and key."""
    groups: dict[str, dict[Key, list[tuple[tuple[int, ...], float]]]] = {}
    for operation, key, axes, ms in rows:
        groups.setdefault(operation, {}).setdefault(key, []).append((axes, ms))
    return {
        operation: {key: _slice(operation, sorted(found)) for key, found in by_key.items()}
        for operation, by_key in groups.items()
    }


def _slice(operation: str, rows: list[tuple[tuple[int, ...], float]]) -> Slice:
    axes = np.array([place for place, _ in rows], dtype=np.int64).reshape(-1, len(LAYOUTS[operation].axes))
    return Slice(tuple(np.ascontiguousarray(axis) for axis in axes.T), np.array([ms for _, ms in rows]))


def _read(line: bytes, kind: type[_Line]) -> _Line | None:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError:
        return None
