"""The stager as one file, to be run by any Python on a node."""

from __future__ import annotations

from pathlib import Path

from aegis.archive import packed

PACKAGE = "aegis_stager"  # what `staging/node` is called inside


def stager_archive() -> bytes:
    """Return the stager as a zip that `python stager.pyz` runs; the same bytes for the same sources."""
    return packed(Path(__file__).with_name("node"), PACKAGE)
