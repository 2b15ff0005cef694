"""What changed from one state to the next. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aegis.registry.overview.model import Change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msgspec import Struct

    from aegis.registry.overview.model import Overview, Point

KEYS: Final = {"jobs": "handle", "models": "name", "instances": "id", "nodes": "name", "maps": "id"}
APPENDED: Final = frozenset({"history"})  # told by what is new in it


def difference(old: Overview, new: Overview) -> Change | None:
    """Return what a reader of the old state must be told to know the new one; None: nothing."""
    changed = {name: _changed(getattr(old, name), getattr(new, name), key) for name, key in KEYS.items()}
    last = old.errors[-1].number if old.errors else 0
    change = Change(
        time=new.time,
        points=_points(old, new),
        errors=[error for error in new.errors if error.number > last],
        problems=None if old.problems == new.problems else new.problems,
        **changed,
    )
    anything = any(changed.values()) or change.points or change.errors or change.problems is not None
    return change if anything else None


def _changed(old: Sequence[Struct], new: Sequence[Struct], key: str) -> dict[str, dict[str, Any] | None]:
    before = {getattr(each, key): each for each in old}
    found: dict[str, dict[str, Any] | None] = {}
    for each in new:
        name = getattr(each, key)
        was = before.pop(name, None)
        if was is not each and (fields := _fields(was, each)):
            found[name] = fields
    return found | dict.fromkeys(before)


def _fields(old: Struct | None, new: Struct) -> dict[str, Any]:
    """Return the fields that differ; all of what is new."""
    names = [name for name in new.__struct_fields__ if name not in APPENDED]
    if old is None:
        return {name: getattr(new, name) for name in names}
    return {name: value for name in names if (value := getattr(new, name)) != getattr(old, name)}


def _points(old: Overview, new: Overview) -> dict[str, list[Point]]:
    last = {model.name: model.history[-1].time for model in old.models if model.history}
    found = {}
    for model in new.models:
        since = last.get(model.name, 0.0)
        points = []
        for point in reversed(model.history):
            if point.time <= since:
                break
            points.append(point)
        if points:
            found[model.name] = points[::-1]
    return found
