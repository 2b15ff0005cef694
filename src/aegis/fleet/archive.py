"""The agent as one file, to be run by any Python on a node."""

from __future__ import annotations

from pathlib import Path

from aegis.archive import packed

PACKAGE = "aegis_agent"  # what `fleet/agent` is called inside


def agent_archive() -> bytes:
    """Return the agent as a zip that `python agent.pyz` runs; the same bytes for the same sources."""
    return packed(Path(__file__).with_name("agent"), PACKAGE)
