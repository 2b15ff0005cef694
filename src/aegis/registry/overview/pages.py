"""The dashboard over HTTP: the state, the page, its events, and logs; for a registry, or whoever has such a state."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import time
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from aiohttp import web

from aegis.page import WEB
from aegis.registry.overview.feed import SECONDS, Feed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aegis.registry.overview.model import Overview

LINES: Final = 200  # of a log, where nothing else is asked for
FRESH_SECONDS: Final = 1.0  # a state is good for all who ask within it
WRITE_SECONDS: Final = 30.0  # for a watcher to take what it is sent
SCRIPTS: Final = ("dashboard.charts.js", "dashboard.table.js", "dashboard.parts.js", "dashboard.js")
STYLES: Final = ("style.css", "dashboard.css")


class Source(Protocol):
    """Who knows what is shown."""

    async def overview(self) -> Overview:
        """Return the state."""
        ...

    async def log(self, service: str, lines: int) -> str:
        """Return the end of an instance's log, or raise HTTPNotFound with the reason."""
        ...


class Dashboard:
    """The routes. They answer who asks: whose they are lets in only who may ask.

    Args:
        source: knows what is shown.
        seconds: between two looks at it.
    """

    def __init__(self, source: Source, seconds: float = SECONDS) -> None:
        self._source = source
        self._feed = Feed(source.overview, seconds)
        self._state: tuple[float, bytes] | None = None
        self._looking = asyncio.Lock()

    def add_to(self, app: web.Application) -> None:
        """Add the routes to an application, and their end to its end."""
        app.add_routes(
            [
                web.get("/overview", self.overview),
                web.get("/ui", self.page),
                web.get("/ui/events", self.events),
                web.get("/ui/log", self.log),
            ]
        )
        app.on_shutdown.append(self._close)

    async def overview(self, _request: web.Request) -> web.Response:
        """Answer the state."""
        async with self._looking:
            if self._state is None or time.monotonic() - self._state[0] > FRESH_SECONDS:
                body = msgspec.json.encode(await self._source.overview())
                self._state = time.monotonic(), body
        headers = {"Cache-Control": "no-store"}
        return web.Response(body=self._state[1], content_type="application/json", headers=headers)

    async def page(self, _request: web.Request) -> web.Response:
        """Answer the page, which has no data yet."""
        text, policy = _page()
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Tell the state, and what changes, until the watcher goes."""
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",  # what a proxy collected would come late
            }
        )
        with contextlib.suppress(ConnectionError, TimeoutError):
            await response.prepare(request)
            async with contextlib.aclosing(self._feed.events()) as events:
                await _pass_on(events, response)
        return response

    async def log(self, request: web.Request) -> web.Response:
        """Answer the end of an instance's log."""
        service, lines = request.query.get("service", ""), request.query.get("lines") or str(LINES)
        if not service:
            raise web.HTTPBadRequest(text="say whose log: ?service=ID")
        if not (lines.isascii() and lines.isdecimal() and int(lines[:9]) > 0):
            raise web.HTTPBadRequest(text=f"lines is {lines!r}: it must be a number above 0")
        text = await self._source.log(service, int(lines[:9]))
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return web.Response(text=text, content_type="text/plain", headers=headers)

    async def _close(self, _app: web.Application) -> None:
        self._feed.close()


async def _pass_on(events: AsyncIterator[bytes], response: web.StreamResponse) -> None:
    async for event in events:
        async with asyncio.timeout(WRITE_SECONDS):
            await response.write(event)


@cache
def _page() -> tuple[str, str]:
    """Return the page, and the policy that lets nothing run or be loaded but what stands in it."""

    def of(names: tuple[str, ...]) -> str:
        return "\n" + "".join((WEB / name).read_text(encoding="utf-8") for name in names)

    style, script = of(STYLES), of(SCRIPTS)
    page = (WEB / "dashboard.html").read_text(encoding="utf-8")
    page = page.replace("{{style}}", style).replace("{{script}}", script)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
