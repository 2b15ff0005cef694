"""The end of a log file of an instance."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES: Final = 1 << 19
MAX_LINES: Final = 5_000
COLOUR: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def tail(folder: Path, service_id: str, lines: int) -> str | None:
    """Return the last lines that a service wrote, without colours; None where it has no log.

    Args:
        folder: has a file `<id>.log` of each service.
        service_id: of a service that the registry knows.
        lines: as many at most.

    Raises:
        OSError: it cannot be read.
    """
    if "/" in service_id or "\0" in service_id:  # else it could name files elsewhere
        return None
    try:
        # A link could lead elsewhere, and the opening of a pipe wait for ever.
        descriptor = os.open(folder / f"{service_id}.log", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, UnicodeError):
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return None
        file.seek(max(0, found.st_size - MAX_BYTES))
        text = file.read(MAX_BYTES).decode(errors="replace")
    kept = text.split("\n")[-min(lines, MAX_LINES) - 1 :]  # the last one is empty, or unfinished
    return CONTROL.sub("", COLOUR.sub("", "\n".join(kept)))
