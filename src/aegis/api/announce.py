"""Word of a run of `aegis map` to the registry of its servers, for whoever looks at these: status, dashboard."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

from aegis.errors import AegisError
from aegis.registry.model import MAP_TYPE, Push, Report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.registry.client import RegistryClient


class Announcement:
    """One run's entry in a registry. It serves nobody, so it is never `healthy`, and has port 0.

    What cannot be told is not told: a registry that refuses is not asked again, one that is away is.

    Args:
        registry: of the servers.
    """

    def __init__(self, registry: RegistryClient) -> None:
        self._registry = registry
        self._host = socket.gethostname()
        self._name = f"map-{self._host}-{os.getpid()}-{secrets.token_hex(2)}"
        self._refused = False

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Say how far the run is; blocks for as long as the registry takes."""
        report = Report(
            service_id=self._name,
            host=self._host,
            port=0,
            service_type=MAP_TYPE,
            status="pending",
            age=0.0,
            metadata=dict(facts),
        )
        self._push((report,))

    def end(self) -> None:
        """Take the entry away."""
        self._push(())

    def _push(self, services: tuple[Report, ...]) -> None:
        if self._refused:
            return
        try:
            self._registry.push(Push(node=self._name, services=services))
        except AegisError as error:
            self._refused = not error.transient
