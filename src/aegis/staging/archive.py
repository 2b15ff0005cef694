"""The stager as one file, to be run by any Python on any node."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

PACKAGE = "aegis_stager"  # what `staging/node` is called inside
MAIN = f"""import sys

from {PACKAGE}.main import main

sys.exit(main(sys.argv[1:]))
"""
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip can tell


def stager_archive() -> bytes:
    """Return the stager as a zip that `python stager.pyz` runs; the same bytes for the same sources.

    Stored, not compressed: it is small, and a Python without zlib could still say that it lacks it.
    """
    sources = sorted(Path(__file__).with_name("node").glob("*.py"))
    files = {f"{PACKAGE}/{source.name}": source.read_bytes() for source in sources}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as made:
        for name, content in {"__main__.py": MAIN.encode(), **files}.items():
            made.writestr(zipfile.ZipInfo(name, EPOCH), content)
    return archive.getvalue()
