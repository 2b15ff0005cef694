"""What an instance waits for: a thing is here when its manifest is that of this very launch, not of an older staging."""

from __future__ import annotations

import os
import zlib
from typing import Any


def is_here(need: dict[str, Any]) -> bool:
    """Tell whether something that is staged is complete on this node.

    Stagers publish it as a whole, by a rename; its manifest begins with what was to be staged (`staging/listing.py`). The
    manifest of a single file lies beside it and comes first, so the file itself is looked at, too.
    """
    try:
        with open(need["manifest"], "rb") as stream:
            records = stream.read(need["length"])
        if len(records) != need["length"] or zlib.crc32(records) != need["crc"]:
            return False
        if not need["file"]:
            return True
        found = os.stat(need["file"])
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (need["size"], need["mtime_ns"])
