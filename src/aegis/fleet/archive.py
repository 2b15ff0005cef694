"""The agent as one file, to be copied to a node and run by any Python there."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

PACKAGE = "aegis_agent"  # what `fleet/agent` is called inside
MAIN = f"""import sys

from {PACKAGE}.main import main

sys.exit(main(sys.argv[1:]))
"""
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip can tell


def agent_archive() -> bytes:
    """Return the agent as a zip that `python agent.pyz` runs; the same bytes for the same sources.

    Stored, not compressed: it is small, and a Python without zlib reads it too.
    """
    sources = sorted(Path(__file__).with_name("agent").glob("*.py"))
    files = {f"{PACKAGE}/{source.name}": source.read_bytes() for source in sources}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as made:
        for name, content in {"__main__.py": MAIN.encode(), **files}.items():
            made.writestr(zipfile.ZipInfo(name, EPOCH), content)
    return archive.getvalue()
