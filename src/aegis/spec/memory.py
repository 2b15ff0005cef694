"""Amounts of memory as people write them, and as both schedulers read them."""

from __future__ import annotations

import re
from fractions import Fraction

_FORM = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)([KMGT])(?:i?B)?", re.IGNORECASE | re.ASCII)
_UNITS = "KMGT"
ALL = "0"  # Slurm: all that a node has


def format_memory(text: str) -> str:
    """Return `64G` for `64G`, `64gb`, `64 GiB`; `1.5T` becomes `1536G`, since schedulers read whole numbers.

    Raises:
        ValueError: it has another form. A bare number is refused on purpose: it means megabytes to Slurm, bytes to PBS,
            and gigabytes to most people.
    """
    if text.strip() == ALL:
        return ALL
    match = _FORM.fullmatch(text.replace(" ", ""))
    if not match:
        raise ValueError(f"`{text}` is no amount of memory")
    amount, unit = Fraction(match[1]), _UNITS.index(match[2].upper())
    while amount.denominator > 1 and unit:
        amount, unit = amount * 1024, unit - 1
    if not amount:
        raise ValueError(f"`{text}` is no memory at all")
    return f"{round(amount)}{_UNITS[unit]}"
