"""Values of metadata, which anybody who may push can make anything: the right type, or nothing. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def text(metadata: Mapping[str, Any], key: str) -> str:
    """Return a text, or an empty one."""
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


def number(metadata: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number, or None."""
    value = metadata.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None


def whole(metadata: Mapping[str, Any], key: str) -> int:
    """Return a number without its fraction, or 0."""
    return int(number(metadata, key) or 0)


def mapping(metadata: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object, or an empty one."""
    value = metadata.get(key)
    return value if isinstance(value, dict) else {}


def texts(metadata: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the texts in a list."""
    value = metadata.get(key)
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list | tuple) else ()


def wholes(metadata: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return the whole numbers in a list."""
    value = metadata.get(key)
    return tuple(each for each in value if type(each) is int) if isinstance(value, list | tuple) else ()
