"""Files that are never seen half-written, and files that only their owner may read."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE = 0o600
SHARED = 0o644


def write_atomically(file: Path, content: str | bytes, mode: int = SHARED) -> None:
    """Write a file by a temporary one beside it and a rename: readers see the old content or the new.

    Raises:
        OSError: it cannot be written; the old content stays.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    temporary = file.with_name(f".{file.name}.{os.urandom(6).hex()}.tmp")  # other nodes may write it too
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # a full disk shows itself here at the latest, before the rename
        temporary.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
