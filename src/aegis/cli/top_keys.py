"""What a key does to the view of `aegis top`, and how keys come from a terminal. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Struct

SORTS: Final = (
    *("instance", "status", "node", "model", "running"),
    *("waiting", "kv", "tokens", "age", "restarts"),
)
HELP: Final = (
    "",
    "  s, S        another order: the next, the one before",
    "  r           reverse it",
    "  /           filter: what stands in name, model, node, address, job, status or reason;",
    "              Enter keeps it, Esc takes it away",
    "  up, down    scroll (also k, j; Page Up, Page Down, Home, End)",
    "  ?           this page; any key leaves it",
    "  q, Ctrl-C   quit",
)
LAST: Final = 1 << 30
NAMES: Final = {
    "[A": "up",
    "OA": "up",
    "[B": "down",
    "OB": "down",
    "[5~": "page up",
    "[6~": "page down",
    "[H": "home",
    "OH": "home",
    "[1~": "home",
    "[F": "end",
    "OF": "end",
    "[4~": "end",
    "": "escape",
}
LETTERS: Final = {"k": "up", "j": "down", " ": "page down", "b": "page up", "g": "home", "G": "end"}
ENTER: Final = {"\r", "\n"}
DELETE: Final = {"\x7f", "\b"}
CLEAR: Final = "\x15"  # Ctrl-U
KEY: Final = re.compile(r"\x1b(\[[0-9;]*[A-Za-z~]|O[A-Za-z]|)|(.)", re.DOTALL)
LONGEST: Final = 60  # characters of a filter


class View(Struct, frozen=True, kw_only=True):
    """What the user chose to see."""

    sort: str = SORTS[0]
    reverse: bool = False
    filter: str = ""
    typing: bool = False  # keys go into the filter
    help: bool = False
    top: int = 0  # first instance that is shown


def keys(text: str) -> list[str]:
    """Return the keys that a terminal sent: characters, or names such as `up`; unknown ones are left out."""
    found = [match[2] or NAMES.get(match[1]) for match in KEY.finditer(text)]
    return [key for key in found if key]


def pressed(view: View, key: str, page: int) -> View | None:
    """Return the view after a key, where `page` instances are shown; None: the user leaves."""
    if view.help:
        return msgspec.structs.replace(view, help=False)
    if view.typing:
        return _typed(view, key)
    return _commanded(view, LETTERS.get(key, key), page)


def _typed(view: View, key: str) -> View:
    text = view.filter
    if key in ENTER or key in {"up", "down"}:
        return msgspec.structs.replace(view, typing=False)
    if key == "escape":
        return msgspec.structs.replace(view, typing=False, filter="")
    if key in DELETE:
        text = text[:-1]
    elif key == CLEAR:
        text = ""
    elif len(key) == 1 and key.isprintable():
        text = (text + key)[:LONGEST]
    return msgspec.structs.replace(view, filter=text, top=0)


def _commanded(view: View, key: str, page: int) -> View | None:
    if key in {"q", "Q"}:
        return None
    steps = {"up": -1, "down": 1, "page up": -page, "page down": page, "home": -LAST, "end": LAST}
    if key in steps:
        return msgspec.structs.replace(view, top=min(LAST, max(0, view.top + steps[key])))
    at = SORTS.index(view.sort)
    changes: dict[str, dict[str, object]] = {
        "?": {"help": True},
        "/": {"typing": True},
        "escape": {"filter": "", "top": 0},
        "r": {"reverse": not view.reverse, "top": 0},
        "s": {"sort": SORTS[(at + 1) % len(SORTS)], "reverse": False, "top": 0},
        "S": {"sort": SORTS[at - 1], "reverse": False, "top": 0},
    }
    return msgspec.structs.replace(view, **changes.get(key, {}))
