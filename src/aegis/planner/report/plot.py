"""Curves as characters: a plot for a terminal, of points that are joined by lines."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

Point = tuple[float, float]


class Series(NamedTuple):
    """Points that are joined in their order, drawn with one character."""

    label: str
    marker: str
    points: Sequence[Point]


class Axis(NamedTuple):
    """From 0 to `end`, with `steps` equal parts that are labelled."""

    label: str
    end: float
    steps: int

    def ticks(self, cells: int) -> dict[int, str]:
        """Return the labels of an axis of so many cells, by cell."""
        values = [self.end * step / self.steps for step in range(self.steps + 1)]
        digits = 0 if all(value == round(value) for value in values) or self.end >= 100 * self.steps else 1
        return {self.cell(value, cells): f"{value:.{digits}f}" for value in values}

    def cell(self, value: float, cells: int) -> int:
        """Return the cell that a value lies in."""
        return round(value / self.end * (cells - 1)) if self.end else 0


def plot(series: Sequence[Series], x: Axis, y: Axis, *, title: str, width: int = 80, height: int = 30) -> str:
    """Return a frame with the series drawn in it, later ones over earlier ones; `width` and `height` in characters.

    Points beyond the axes are left out. The legend stands in the upper left corner.
    """
    margin = max(len(label) for label in y.ticks(height).values())
    columns, lines = width - margin - 2, height - 5
    canvas = [[" "] * columns for _ in range(lines)]
    for each in series:
        for column, line in _cells(each.points, (x, y), (columns, lines)):
            canvas[lines - 1 - line][column] = each.marker
    for line, each in enumerate(series):
        text = f" {each.marker * 2} {each.label}"
        canvas[line][: len(text)] = list(text)[:columns]
    return "\n".join(
        line.rstrip()
        for line in (
            f"{title:^{columns}}".join((" " * (margin + 1), "")),
            f"{'':{margin}}┌{'─' * columns}┐",
            *_rows(canvas, y.ticks(lines), margin),
            f"{'':{margin}}└{_ruler(x.ticks(columns), columns)}┘",
            f"{'':{margin + 1}}{_labels(x.ticks(columns), columns)}",
            f"{y.label:{margin + 1}}{x.label:^{columns - max(len(y.label) - margin - 1, 0)}}",
        )
    )


def round_up(value: float, to: int) -> float:
    """Return the multiple of `to` that is not below a value."""
    return float(max(math.ceil(value / to), 1) * to)


def _cells(points: Sequence[Point], axes: tuple[Axis, Axis], size: tuple[int, int]) -> set[tuple[int, int]]:
    """Return the cells that points and the lines between them touch."""
    at = [
        tuple(axis.cell(value, cells) for axis, value, cells in zip(axes, point, size, strict=True))
        for point in points
        if all(0 <= value <= axis.end for axis, value in zip(axes, point, strict=True))
    ]
    touched = {(column, line) for column, line in at}
    for (x0, y0), (x1, y1) in pairwise(at):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        touched |= {
            (round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps))
            for step in range(steps)
        }
    return touched


def _rows(canvas: list[list[str]], ticks: dict[int, str], margin: int) -> list[str]:
    rows = []
    for number, line in enumerate(canvas):
        label = ticks.get(len(canvas) - 1 - number)
        edge = "│" if label is None else "┤"
        rows.append(f"{label or '':>{margin}}{edge}{''.join(line)}│")
    return rows


def _ruler(ticks: dict[int, str], columns: int) -> str:
    return "".join("┬" if column in ticks else "─" for column in range(columns))


def _labels(ticks: dict[int, str], columns: int) -> str:
    """Return the labels of the x axis, each below its tick, the outer ones within the frame."""
    line = [" "] * columns
    for column, label in ticks.items():
        start = min(max(column - len(label) // 2, 0), columns - len(label))
        line[start : start + len(label)] = list(label)
    return "".join(line)
