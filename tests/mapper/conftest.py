"""Fleets of simulated servers, and servers that do what a test says."""

from __future__ import annotations

from tests.engines.conftest import sim

__all__ = ["sim"]
