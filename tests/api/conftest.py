"""Simulated servers, and a registry in a thread."""

from __future__ import annotations

from tests.engines.conftest import Sim, sim
from tests.registry.conftest import Site, clock, site, store, wait_until

__all__ = ["Sim", "Site", "clock", "sim", "site", "store", "wait_until"]
