"""What the routes of a registry do where it mirrors others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from aegis.errors import AegisError, ConfigError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp.typedefs import Handler

    from aegis.registry.federate import Federation
    from aegis.registry.model import Push

NO_TOKEN = "this registry has no token, and so takes no wishes to those that it mirrors"  # noqa: S105 - words
NOT_ALL = "this registry shows several jobs, and ends, scales or replaces none of them: ask the job's own"


def mirroring(federation: Federation, take: Callable[[Push], None]) -> Callable[[Any], AsyncIterator[None]]:
    """Return what follows the sources for as long as an application runs."""

    async def follow(_app: web.Application) -> AsyncIterator[None]:
        federation.start(take)
        yield
        federation.stop()

    return follow


def passing_on(federation: Federation, *, may_write: bool) -> Any:
    """Return the middleware that takes wishes back to where a service comes from, and refuses those for whole jobs.

    Args:
        federation: the sources.
        may_write: who writes here has shown a token. Where nobody has to, nobody writes to the sources either.
    """

    @web.middleware
    async def pass_on(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method in ("GET", "HEAD") or request.path.startswith("/nodes/"):
            return await handler(request)
        service_id = request.match_info.get("id")
        if service_id is None:
            raise web.HTTPConflict(text=NOT_ALL)
        if not federation.owns(service_id):
            return await handler(request)
        if not may_write:
            raise web.HTTPForbidden(text=NO_TOKEN)
        wish = federation.delete if request.method == "DELETE" else federation.drain
        try:
            service = await wish(service_id)
        except NotFoundError:
            raise web.HTTPNotFound from None
        except ConfigError as error:
            raise web.HTTPConflict(text=error.message) from None
        except AegisError as error:
            raise web.HTTPBadGateway(text=error.message) from None
        status = 200 if request.method == "DELETE" else 202
        return web.Response(body=msgspec.json.encode(service), status=status, content_type="application/json")

    return pass_on
