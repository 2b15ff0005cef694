"""What the gateway answers by itself: which models there are, how it is, and what it has counted."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from aegis.gateway.keys import Client
from aegis.gateway.overview import add_overview
from aegis.gateway.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.typedefs import Handler

    from aegis.gateway.gateway import Gateway
    from aegis.gateway.settings import Sources

OPEN: Final = frozenset(
    {"/healthz", "/health", "/metrics", "/ui"}
)  # for whoever watches; the page has no data of its own


class Pages:
    """The routes."""

    def __init__(self, gateway: Gateway, sources: Sources) -> None:
        self._gateway = gateway
        self._sources = sources
        self._began = int(time.time())

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/v1/models", self.models),
                web.get("/v1/models/{model:.+}", self.model),
                web.get("/healthz", self.health),
                web.get("/health", self.health),  # where engines have it
            ]
        )
        if self._gateway.account.metrics is not None:
            app.add_routes([web.get("/metrics", self.metrics)])
        add_overview(app, self._sources, logs=self._gateway.keys is not None)
        return app

    async def models(self, request: web.Request) -> web.Response:
        """Answer the models of all instances, as OpenAI does."""
        may_ask = self._allowed(request)
        cards = [self._card(name) for name in self._gateway.balance.names if may_ask(name)]
        return _json({"object": "list", "data": cards})

    async def model(self, request: web.Request) -> web.Response:
        """Answer one of them."""
        name = request.match_info["model"]
        if not self._gateway.balance.serves(name) or not self._allowed(request)(name):
            raise web.HTTPNotFound(text=f"there is no model {name[:200]!r} here")
        return _json(self._card(name))

    async def health(self, _request: web.Request) -> web.Response:
        """Answer that the gateway runs, and what it sees."""
        gateway = self._gateway
        backends = [each for each in gateway.balance.backends if not each.gone]
        state = {
            "status": "draining" if gateway.draining else "ok",
            "instances": len(backends),
            "working": sum(each.state == "closed" for each in backends),
            "models": gateway.balance.names,
            "running": len(gateway.exchanges) - gateway.line.length,
            "queued": gateway.line.length,
            "problem": self._sources.problem or None,
        }
        return _json(state)

    async def metrics(self, _request: web.Request) -> web.Response:
        """Answer what was counted, as Prometheus reads it."""
        metrics = self._gateway.account.metrics
        assert metrics is not None  # noqa: S101 - else there is no such route
        body, kind = metrics.exposition()
        return web.Response(body=body, headers={"Content-Type": kind})

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "aegis"}

    def _allowed(self, request: web.Request) -> Callable[[str], bool]:
        """Return what tells whether the key of a request is good for a model."""
        found = self._checked(request)
        return found.may_ask if isinstance(found, Client) else lambda _: True

    def _checked(self, request: web.Request) -> Client | Refusal | None:
        keys = self._gateway.keys
        return keys.check(request.headers.get("Authorization"), None, time.time()) if keys else None

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Ask for a key where there are keys, and put errors as OpenAI does."""
        if request.path not in OPEN and isinstance(found := self._checked(request), Refusal):
            return _refused(found)
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < HTTPStatus.BAD_REQUEST:
                raise
            message = (
                error.text if error.text and not error.text.startswith(f"{error.status}") else error.reason
            )
            if error.status == HTTPStatus.NOT_FOUND and message == error.reason:
                message = f"there is nothing at {request.method} {request.path[:200]}"
            return _refused(Refusal(status=error.status, message=message, code=_code(error.reason)))


def _code(reason: str) -> str:
    return reason.lower().replace(" ", "_")


def _refused(refusal: Refusal) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == HTTPStatus.UNAUTHORIZED else None
    return web.Response(
        body=refusal.body, status=refusal.status, content_type="application/json", headers=headers
    )


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
