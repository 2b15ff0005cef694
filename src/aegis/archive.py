"""A package as one file that any Python runs: what travels to nodes."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAIN = """import sys

from {package}.main import main

sys.exit(main(sys.argv[1:]))
"""
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip can tell


def packed(folder: Path, package: str) -> bytes:
    """Return the modules of a folder as a zip that `python FILE.pyz` runs; the same bytes for the same sources.

    Inside they are the package of that name, whose `main.main` is called. Stored, not compressed: it is small, and a
    Python without zlib reads it too.
    """
    files = {f"{package}/{source.name}": source.read_bytes() for source in sorted(folder.glob("*.py"))}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as made:
        for name, content in {"__main__.py": MAIN.format(package=package).encode(), **files}.items():
            made.writestr(zipfile.ZipInfo(name, EPOCH), content)
    return archive.getvalue()
