"""Which version of an engine is newer."""

from __future__ import annotations

import re
from typing import TypeAlias

Order: TypeAlias = tuple[tuple[int, ...], int, int]

_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)[-_.]?(?:(dev|rc|a|b|post)[-_.]?(\d*))?")
_STAGES = {"dev": -4, "a": -3, "b": -2, "rc": -1, None: 0, "post": 1}  # PEP 440


def version_order(version: str) -> Order:
    """Return what versions are sorted by: 1.0.0rc3 < 1.0.0 < 1.0.0.post1 < 1.0.1; what is no version goes first."""
    found = _VERSION.match(version.lower())
    if not found:
        return ((), 0, 0)
    numbers = [int(each) for each in found[1].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return (tuple(numbers), _STAGES[found[2]], int(found[3] or 0))
