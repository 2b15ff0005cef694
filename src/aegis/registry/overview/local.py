"""The dashboard of a registry: its own store, and the logs in the run directory of its job."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from aegis.errors import AegisError
from aegis.registry.overview.fleet import Fleet
from aegis.registry.overview.history import POINT_SECONDS
from aegis.registry.overview.log import tail

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aegis.registry.federate import Federation
    from aegis.registry.overview.model import Overview
    from aegis.registry.store import Store


class Local:
    """What a registry shows.

    Args:
        store: of the registry.
        logs: folder with a log of each instance, where there is one.
        federation: the registries that it mirrors.
    """

    def __init__(self, store: Store, logs: Path | None, federation: Federation | None = None) -> None:
        self._store, self._logs, self._federation = store, logs, federation
        self._fleet = Fleet(store)

    async def overview(self) -> Overview:
        """Return the state."""
        return self._fleet.overview()

    async def log(self, service: str, lines: int) -> str:
        """Return the end of an instance's log, or raise HTTPNotFound with the reason."""
        if self._store.get(service) is None:
            raise web.HTTPNotFound(text="there is no such instance")
        try:
            if self._federation and self._federation.owns(service):
                return await self._federation.log(service, lines)
            found = await asyncio.to_thread(tail, self._logs, service, lines) if self._logs else None
        except OSError as error:
            raise web.HTTPNotFound(text=f"its log cannot be read: {error.strerror}") from None
        except AegisError as error:
            raise web.HTTPNotFound(text=error.message) from None
        if found is None:
            raise web.HTTPNotFound(text="this registry knows of no log of it")
        return found

    async def ticking(self, _app: web.Application) -> AsyncIterator[None]:
        """Keep the history for as long as the application runs."""
        task = asyncio.create_task(self._tick_always())
        yield
        task.cancel()

    async def _tick_always(self) -> None:
        while True:
            await asyncio.sleep(POINT_SECONDS)
            self._fleet.tick()
