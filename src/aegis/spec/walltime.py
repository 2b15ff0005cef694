"""Walltimes: `HH:MM:SS` as both schedulers print them; and ages, for people."""

from __future__ import annotations

import re

_FORM = re.compile(r"(?:(\d{1,3})-)?(\d{1,4}):([0-5]\d):([0-5]\d)")


def parse_walltime(text: str) -> int:
    """Return the seconds of `HH:MM:SS` or `D-HH:MM:SS`.

    Raises:
        ValueError: it has another form. Shorter ones are refused on purpose: `30` means seconds to PBS and
            minutes to Slurm, and `01:00` means a minute to both, but an hour to most people.
    """
    match = _FORM.fullmatch(text.strip())
    if not match:
        raise ValueError(f"`{text}` is no walltime")
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ValueError(f"`{text}` is no time at all")
    return total


def format_walltime(seconds: float) -> str:
    """Return `HH:MM:SS`; hours may exceed 24."""
    whole = max(0, int(seconds))
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def format_age(seconds: float) -> str:
    """Return a short age: `45s`, `12m05s`, `3h05m`, `2d04h`."""
    whole = max(0, int(seconds))
    if whole < 60:  # noqa: PLR2004 - a minute
        return f"{whole}s"
    if whole < 3600:  # noqa: PLR2004 - an hour
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:  # noqa: PLR2004 - a day
        return f"{whole // 3600}h{whole // 60 % 60:02d}m"
    return f"{whole // 86400}d{whole // 3600 % 24:02d}h"
