"""What `aegis top` draws: an overview, as lines of a terminal. Pure, and no more rows are made than are shown."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from rich.text import Text

from aegis.cli.render import printable
from aegis.cli.top_keys import HELP
from aegis.cli.top_rows import (
    ERRORS,
    INSTANCES,
    JOBS,
    MAPS,
    MODELS,
    error_row,
    instance_row,
    job_row,
    map_row,
    model_row,
    rate,
    whole,
)
from aegis.cli.top_table import fitted, shortened
from aegis.registry.model import GATEWAY_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aegis.cli.top_keys import View
    from aegis.cli.top_table import Cell, Column
    from aegis.registry.overview.model import Instance, Overview

    Row = Callable[["T", float], list[Cell]]

T = TypeVar("T")

NUMBER: Final = re.compile(r"(\d{1,18})", re.ASCII)
WORST_FIRST: Final = ("failed", "unhealthy", "starting", "pending", "draining", "stopped", "healthy")
FEW: Final = 4  # jobs, models, maps, errors that are shown on a low terminal: instances need the room
AROUND: Final = 3  # lines around the instances: a blank, their titles, the keys
LEAST_ROWS: Final = 3  # of instances


class Size(NamedTuple):
    """Cells and lines that there are; None: as many as are needed."""

    width: int | None = None
    height: int | None = None


class Room(NamedTuple):
    """What a table may take: cells, and rows; and what time it is."""

    width: int | None
    few: int | None
    now: float


class Picture(NamedTuple):
    """What is to be seen, and how far it is scrolled."""

    lines: list[Text]
    top: int  # first instance that is shown
    page: int  # how many are


class Frame(NamedTuple):
    """What is drawn around the figures."""

    title: str  # what is looked at
    now: float  # epoch seconds of the overview's clock; later than its `time` where nothing has come since
    silence: str = ""  # why nothing comes, and since when


def draw(overview: Overview, view: View, size: Size, frame: Frame) -> Picture:
    """Return the lines of an overview, none of them wider and all together no more than there is room for."""
    width, height = size
    head = _head(overview, frame, width)
    if view.help:
        return Picture([head, *(Text(shortened(line, width)) for line in HELP)][:height], 0, 1)
    above = [head, *_above(overview, frame, size)]
    rows = chosen(overview.instances, view)
    if height is None:
        return Picture([*above, *_instances(rows, frame.now, width)], 0, len(rows))
    above = above[: max(1, height - LEAST_ROWS - AROUND)]
    page = max(1, height - len(above) - AROUND)
    top = max(0, min(view.top, len(rows) - page))
    lines = [*above, *_instances(rows[top : top + page], frame.now, width)]
    lines = [*lines, *[Text()] * height][: height - 1]
    return Picture([*lines, _foot(view, _span(top, page, len(rows)), width)], top, page)


def chosen(instances: Sequence[Instance], view: View) -> list[Instance]:
    """Return the instances that the filter leaves, sorted; further members of one are none of their own."""
    wanted = view.filter.casefold()
    found = [each for each in instances if not each.rank and (not wanted or wanted in _searched(each))]
    found.sort(key=_by_name)
    key, falls = SORT_KEYS[view.sort]
    return sorted(found, key=key, reverse=view.reverse is not falls)


def _by_name(each: Instance) -> list[tuple[int, str]]:
    """Sort `m-2` before `m-10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in NUMBER.split(each.id)]


def _told(value: float | None) -> float:
    return -1.0 if value is None else value


def _badness(each: Instance) -> int:
    return WORST_FIRST.index(each.status) if each.status in WORST_FIRST else len(WORST_FIRST)


# Of each sort its key, and whether it begins with the largest.
SORT_KEYS: Final[dict[str, tuple[Callable[[Instance], str | float], bool]]] = {
    "instance": (lambda _: "", False),
    "status": (_badness, False),
    "node": (lambda each: each.node, False),
    "model": (lambda each: each.model, False),
    "running": (lambda each: _told(each.load.running), True),
    "waiting": (lambda each: _told(each.load.waiting), True),
    "kv": (lambda each: _told(each.load.kv_cache), True),
    "tokens": (lambda each: _told(each.load.generation_rate), True),
    "age": (lambda each: _told(each.since), True),  # the youngest first
    "restarts": (lambda each: each.restarts, True),
}


def _searched(each: Instance) -> str:
    told = (each.id, each.model, each.node, each.host, each.job, each.type, each.status, each.reason)
    return "\n".join(told).casefold()


def _head(overview: Overview, frame: Frame, width: int | None) -> Text:
    """Return the line that sums up everything."""
    servers = [each for each in overview.instances if not each.rank and each.type != GATEWAY_TYPE]
    healthy = sum(each.status == "healthy" for each in servers)
    loads = [model.now for model in overview.models]
    parts = [
        frame.title,
        f"{healthy}/{len(servers)} instances",
        f"{whole(_sum(load.running for load in loads))} running",
        f"{whole(_sum(load.waiting for load in loads))} waiting",
        f"{rate(_sum(load.generation_rate for load in loads))} tokens/s",
        f"{len(overview.nodes)} node{'' if len(overview.nodes) == 1 else 's'}",
        time.strftime("%H:%M:%S", time.localtime(frame.now)),
    ]
    return Text(shortened(printable("  ".join(parts)), width), "bold")


def _sum(values: Iterable[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return sum(told) if told else None


def _above(overview: Overview, frame: Frame, size: Size) -> list[Text]:
    """Return what stands above the instances."""
    room = Room(size.width, None if size.height is None else max(FEW, size.height // 6), frame.now)
    alarms = [each for each in (frame.silence, *overview.problems) if each]
    newest = overview.errors[::-1]
    return [
        *(Text(shortened(printable(each), size.width), "bold red") for each in alarms[: room.few]),
        *_section(JOBS, overview.jobs, job_row, room),
        *_section(MODELS, overview.models, model_row, room),
        *_section(MAPS, overview.maps, map_row, room),
        *_section(ERRORS, newest, error_row, room),
    ]


def _section(columns: Sequence[Column], things: Sequence[T], row: Row[T], room: Room) -> list[Text]:
    """Return a table below a blank line; where there are too many rows, how many are not shown."""
    if not things:
        return []
    shown = things if room.few is None or len(things) <= room.few else things[: room.few - 1]
    lines = [Text(), *fitted(columns, [row(each, room.now) for each in shown], room.width)]
    if len(shown) < len(things):
        lines.append(Text(shortened(f"... and {len(things) - len(shown)} more", room.width), "dim"))
    return lines


def _instances(shown: Sequence[Instance], now: float, width: int | None) -> list[Text]:
    if not shown:
        return [Text(), Text(shortened("no instances", width), "dim")]
    return [Text(), *fitted(INSTANCES, [instance_row(each, now) for each in shown], width)]


def _span(top: int, page: int, count: int) -> str:
    return f"{top + 1}-{min(count, top + page)} of {count}" if count else "0"


def _foot(view: View, span: str, width: int | None) -> Text:
    """Return the last line: what is shown, and which keys there are."""
    if view.typing:
        return Text(
            shortened(f"/{printable(view.filter)}_  Enter keeps it, Esc takes it away", width), "reverse"
        )
    order = f"by {view.sort}{', reversed' if view.reverse else ''}"
    only = f"  with `{printable(view.filter)}`" if view.filter else ""
    return Text(shortened(f"{span}  {order}{only}  s sort  / filter  ? help  q quit", width), "reverse")
