"""CPU lists as Linux writes them: `1-8,105` is the CPUs 1 to 8 and 105."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

HIGHEST = 65535  # far above any machine; keeps a slip such as `1-99999999999` from filling the memory
_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


def parse_cpulist(text: str) -> tuple[int, ...]:
    """Return the CPUs of a list in rising order, each once; an empty list has none.

    Raises:
        ConfigError: the text is no CPU list.
    """
    if not text.strip():
        return ()
    cpus: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if not match:
            raise _error(text, f"`{part.strip()}` is neither a number nor a range")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise _error(text, f"the range `{part.strip()}` runs backwards")
        if last > HIGHEST:
            raise _error(text, f"the highest CPU number is {HIGHEST}")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def format_cpulist(cpus: Iterable[int]) -> str:
    """Return the shortest list that names these CPUs."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1][1:] = [cpu]
        else:
            runs.append([cpu])
    return ",".join("-".join(str(end) for end in run) for run in runs)


def _error(text: str, reason: str) -> ConfigError:
    return ConfigError(
        f"`{text}` is no CPU list: {reason}", hint="write numbers and ranges, such as 1-8,105-112"
    )
