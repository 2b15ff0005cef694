"""Tables of `aegis top`: rows that fit into the width there is. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from aegis.cli.render import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP: Final = 2
HEAD: Final = "dim"


class Column(NamedTuple):
    """One column."""

    title: str
    right: bool = False
    least: int | None = None  # cells that it may be shortened to; None: its content is never cut
    tail: bool = False  # cut at its beginning: names of many differ at their ends
    rank: int = 0  # where there is no room for all, those of the highest rank are left out first; 0: never


class Cell(NamedTuple):
    """What stands in one place."""

    text: str
    style: str = ""


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int | None) -> list[Text]:
    """Return the title line and one line per row, none of them wider than `width` cells (None: as wide as they are)."""
    rows = [[Cell(printable(cell.text), cell.style) for cell in row] for row in rows]
    natural = [
        max([cell_len(column.title), *(cell_len(row[at].text) for row in rows)])
        for at, column in enumerate(columns)
    ]
    if width is not None:
        natural = [min(each, width) for each in natural]
    kept = _kept(columns, natural, width)
    widths = dict(
        zip(kept, _widths([columns[at] for at in kept], [natural[at] for at in kept], width), strict=True)
    )
    head = [Cell(column.title, HEAD) for column in columns]
    return [_line(columns, row, widths, width) for row in (head, *rows)]


def shortened(text: str, width: int | None, *, tail: bool = False) -> str:
    """Return a text that takes no more cells than there are; its end where the `tail` is wanted."""
    if width is None or cell_len(text) <= width:
        return text
    if tail:
        while text and cell_len(text) >= width:
            text = text[max(1, (len(text) - width) // 2) :]
        return f"…{text}"[:width]
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 1 else text[:width]


def _kept(columns: Sequence[Column], natural: Sequence[int], width: int | None) -> list[int]:
    """Return which columns there is room for, when those that can be are cut."""
    kept = list(range(len(columns)))
    while width is not None:
        least = [natural[at] if (cut := columns[at].least) is None else min(cut, natural[at]) for at in kept]
        worst = max(kept, key=lambda at: (columns[at].rank, at))
        if sum(least) + GAP * (len(kept) - 1) <= width or not columns[worst].rank:
            break
        kept.remove(worst)
    return kept


def _widths(columns: Sequence[Column], natural: Sequence[int], width: int | None) -> list[int]:
    """Return the width of each column; what is too much is cut from the widest that may be cut."""
    widths = list(natural)
    if width is None:
        return widths
    excess = sum(widths) + GAP * (len(widths) - 1) - width
    while excess > 0:
        room = {
            at: widths[at]
            for at, column in enumerate(columns)
            if column.least is not None and widths[at] > column.least
        }
        if not room:
            break
        widths[max(room, key=lambda at: (room[at], at))] -= 1
        excess -= 1
    return widths


def _line(columns: Sequence[Column], row: Sequence[Cell], widths: dict[int, int], width: int | None) -> Text:
    line = Text(no_wrap=True)
    for at, cells in widths.items():
        text = shortened(row[at].text, cells, tail=columns[at].tail)
        pad = " " * (cells - cell_len(text))
        line.append(" " * GAP if line else "")
        line.append(pad + text if columns[at].right else text + pad, row[at].style)
    line.rstrip()
    if width is not None:
        line.truncate(width)
    return line
