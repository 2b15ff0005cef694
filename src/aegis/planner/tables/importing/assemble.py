"""Put the rows of several files together: sorted slices in which the first row of a key has won."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from aegis.planner.tables.slices import LAYOUTS, Slice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from aegis.planner.tables.importing.frames import Frame
    from aegis.planner.tables.importing.schema import Schema
    from aegis.planner.tables.slices import Key

Rows: TypeAlias = "dict[str, NDArray[Any]]"  # columns of an operation, and latency


def rows_of(frame: Frame, schema: Schema) -> Rows:
    """Return a file's rows by the columns of the operation's layout, with their latency in ms."""
    if schema.keep is not None:
        frame = frame.where(schema.keep(frame))
    return {
        **{name: column(frame) for name, column in schema.columns.items()},
        "latency": schema.latency(frame),
    }


def with_default_lane(rows: Rows, *, named: bool) -> Rows:
    """Return the rows in the lane "default", and in front of them in their own if `named`."""
    default = {**rows, "lane": np.full(len(rows["lane"]), "default")}
    return concatenate([rows, default]) if named else default


def concatenate(parts: Iterable[Rows]) -> Rows:
    """Return the rows of all parts, in their order."""
    listed = list(parts)
    return {name: np.concatenate([part[name] for part in listed]) for name in listed[0]} if listed else {}


def slices_of(operation: str, rows: Rows) -> dict[Key, Slice]:
    """Return sorted slices by key. Of rows that share key and axes, the first counts."""
    layout = LAYOUTS[operation]
    if not rows or not len(rows["latency"]):
        return {}
    keys = [np.unique(rows[name], return_inverse=True) for name in layout.key]
    codes = [codes.reshape(-1) for _, codes in keys]
    axes = [rows[name].astype(np.int64) for name in layout.axes]
    order = np.lexsort((*reversed(axes), *reversed(codes)))  # stable: the first of equals stays first
    columns = np.stack([*codes, *axes], axis=1)[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (columns[1:] != columns[:-1]).any(axis=1)
    order, columns = order[new], columns[new]
    heads = columns[:, : len(codes)]
    starts = np.flatnonzero(np.r_[True, (heads[1:] != heads[:-1]).any(axis=1)])
    found: dict[Key, Slice] = {}
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        key = tuple(names[code].item() for (names, _), code in zip(keys, heads[start], strict=True))
        table = columns[start:end, len(codes) :]
        found[key] = Slice(
            tuple(np.ascontiguousarray(table[:, axis]) for axis in range(table.shape[1])),
            rows["latency"][order[start:end]].astype(np.float64),
        )
    return found
