"""Find before the queue what would fail after it."""

from __future__ import annotations

from aegis.preflight.arguments import check_entry
from aegis.preflight.finding import Finding, refuse

__all__ = ["Finding", "check_entry", "refuse"]
