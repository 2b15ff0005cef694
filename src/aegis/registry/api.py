"""The registry's HTTP routes (contract: docs/registry.md)."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from aiohttp import web

from aegis.decoding import from_json
from aegis.registry import federating
from aegis.registry.metrics import Metrics
from aegis.registry.model import (
    EARLIER_NAMES,
    HEALTHY_SECONDS,
    RESERVED_IDS,
    STATUSES,
    Change,
    Count,
    Failure,
    Granted,
    Orders,
    Push,
    Retirement,
    Wish,
)
from aegis.registry.overview.local import Local
from aegis.registry.overview.pages import Dashboard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from aiohttp.typedefs import Handler

    from aegis.registry.federate import Federation
    from aegis.registry.journal import Journal
    from aegis.registry.store import Store

BODY_BYTES: Final = 16 * 2**20
BODY_SECONDS: Final = 30.0  # for a push to arrive whole
SWEEP_SECONDS: Final = 1.0
NOT_FOUND: Final = "404: Not Found"  # aiohttp's own words
WATCH_SECONDS: Final = 30.0  # default `timeout` of /watch
WATCH_MAX_SECONDS: Final = 3600.0
READS: Final = frozenset({"GET", "HEAD"})
OPEN: Final = frozenset({"/healthz", "/ui"})  # the page itself has no data
PRIVATE: Final = frozenset({"/ui/log"})  # a log may tell of requests

_encode = msgspec.json.Encoder().encode
_push_decoder = msgspec.json.Decoder(Push)
T = TypeVar("T")


def make_app(
    store: Store,
    *,
    token: str | None = None,
    protect_reads: bool = False,
    journal: Journal | None = None,
    federation: Federation | None = None,
    logs: Path | None = None,
) -> web.Application:
    """Build the application around a store; `journal` gets every material change, `federation` mirrors other registries.

    `logs` is the folder that has the logs of instances, for who presents the token.
    """
    metrics = Metrics(store)
    middlewares = [metrics.middleware, _errors, _guard(token, protect_reads=protect_reads)]
    if federation:
        middlewares.append(federating.passing_on(federation, may_write=token is not None))
    app = web.Application(middlewares=middlewares, client_max_size=BODY_BYTES)
    api = Api(store, metrics, journal)
    service = "/services/{id:[^/]+}"
    app.add_routes(
        [
            web.get("/services", api.list),
            web.get("/services/healthy", api.healthy),
            web.get("/services/count", api.count),
            web.get(service, api.get),
            web.delete(service, api.delete),
            web.post(service + "/drain", api.drain),
            web.get("/nodes", api.nodes),
            web.put("/nodes/{node:[^/]+}", api.push),
            web.put("/nodes/{node:[^/]+}/orders", api.order),
            web.post("/wishes", api.wish),
            web.get("/wishes/{id:[^/]+}", api.asked),
            web.put("/wishes/{id:[^/]+}", api.answer),
            web.post("/stop", api.stop),
            web.post("/retire", api.retire),
            web.get("/watch", api.watch),
            web.get("/metrics", metrics.expose),
            web.get("/healthz", api.healthz),
        ]
    )
    # Without a token anybody could read with those of the mirrored registries.
    local = Local(store, logs, federation if token is not None else None)
    Dashboard(local).add_to(app)
    app.cleanup_ctx.append(local.ticking)
    app.cleanup_ctx.append(api.sweeping)
    if federation:
        app.cleanup_ctx.append(federating.mirroring(federation, api.take))
    app.on_shutdown.append(api.shut_down)
    return app


class Api:
    """The routes: parse, ask the store, encode."""

    def __init__(self, store: Store, metrics: Metrics, journal: Journal | None) -> None:
        self._store, self._metrics, self._journal = store, metrics, journal
        self._news = asyncio.Event()  # replaced each time it is set: a waiter keeps the one it got
        self._closing = False

    async def list(self, request: web.Request) -> web.Response:
        query = _query(request, "type", "status", "model")
        found = self._store.select(
            service_type=query.get("type"), status=_status(query), model=query.get("model")
        )
        return _json(found)

    async def healthy(self, request: web.Request) -> web.Response:
        query = _query(request, "type", "timeout", "model")
        timeout = _seconds(query, HEALTHY_SECONDS)
        found = self._store.healthy(service_type=query.get("type"), model=query.get("model"), timeout=timeout)
        return _json(found)

    async def count(self, request: web.Request) -> web.Response:
        query = _query(request, "type", "status", "model")
        found = self._store.select(
            service_type=query.get("type"), status=_status(query), model=query.get("model")
        )
        return _json(Count(len(found)))

    async def get(self, request: web.Request) -> web.Response:
        _query(request)
        if service := self._store.get(request.match_info["id"]):
            return _json(service)
        raise web.HTTPNotFound

    async def delete(self, request: web.Request) -> web.Response:
        if change := self._store.remove(request.match_info["id"]):
            self._publish([change])
            return _json(change.service)
        raise web.HTTPNotFound

    async def drain(self, request: web.Request) -> web.Response:
        service_id = request.match_info["id"]
        if self._store.drain(service_id):
            return _json(self._store.get(service_id), status=202)
        raise web.HTTPNotFound

    def take(self, push: Push) -> None:
        """Take what a mirrored registry says."""
        self._publish(self._store.apply(push))

    async def push(self, request: web.Request) -> web.Response:
        push = _decode_push(await _body(request), request.match_info["node"])
        self._publish(self._store.apply(push))
        self._metrics.pushes.inc()
        return _json(self._store.acknowledge(push.node))

    async def nodes(self, request: web.Request) -> web.Response:
        _query(request)
        return _json(self._store.nodes())

    async def order(self, request: web.Request) -> web.Response:
        body = await _body(request)
        orders = _decode(body, Orders, "orders")
        if orders.node != request.match_info["node"]:
            raise _refuse(
                f"malformed orders: `$.node` is {orders.node!r}, the URL says {request.match_info['node']!r}"
            )
        self._store.order(orders, msgspec.Raw(body))
        return _json({}, status=202)

    async def wish(self, request: web.Request) -> web.Response:
        asked = self._store.wish(_decode(await _body(request), Wish, "wish"))
        self._wake()
        return _json(asked, status=202)

    async def asked(self, request: web.Request) -> web.Response:
        if asked := self._store.asked(request.match_info["id"]):
            return _json(asked)
        raise web.HTTPNotFound

    async def answer(self, request: web.Request) -> web.Response:
        answer = _decode(await _body(request), Granted, "answer")
        if asked := self._store.answer(request.match_info["id"], answer):
            return _json(asked)
        raise web.HTTPNotFound

    async def stop(self, _request: web.Request) -> web.Response:
        self._store.stop()
        self._wake()
        return _json({}, status=202)

    async def retire(self, request: web.Request) -> web.Response:
        try:
            wish = from_json(await _body(request), Retirement)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _refuse(f"malformed wish to retire: {error}") from None
        answer = self._store.retire(wish)
        self._wake()
        return _json(answer, status=202)

    async def watch(self, request: web.Request) -> web.Response:
        query = _query(request, "since", "timeout")
        since = _revision(query)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_seconds(query, WATCH_SECONDS), WATCH_MAX_SECONDS)):
                while since == self._store.revision and not self._closing:
                    await self._news.wait()
        return _json(self._store.changed_since(since))

    async def healthz(self, _request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def sweeping(self, _app: web.Application) -> AsyncIterator[None]:
        """Sweep once a second for as long as the application runs."""
        task = asyncio.create_task(self._sweep_always())
        yield
        task.cancel()

    async def shut_down(self, _app: web.Application) -> None:
        """Answer the watchers, so that none holds up the end."""
        self._closing = True
        self._wake()

    async def _sweep_always(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._publish(self._store.sweep())

    def _publish(self, changes: Sequence[Change]) -> None:
        if changes:
            if self._journal:
                self._journal.append(changes)
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _guard(token: str | None, *, protect_reads: bool) -> Any:
    expected = f"Bearer {token}".encode(errors="surrogateescape")

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_read = request.method in READS and request.path not in PRIVATE
        is_open = request.path in OPEN or (is_read and not protect_reads)
        if token is not None and not is_open:
            given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
            if not hmac.compare_digest(given, expected):
                raise web.HTTPUnauthorized(
                    text="this registry needs its token: Authorization: Bearer <token>",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        return await handler(request)

    return guard


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every refusal into JSON."""
    try:
        return await handler(request)
    except web.HTTPNotFound as error:
        said = error.text or ""
        return _json(Failure("not found" if said == NOT_FOUND else said), status=404)
    except web.HTTPMethodNotAllowed as error:
        reason = f"{request.method} is not allowed here, only {', '.join(sorted(error.allowed_methods))}"
        return _json(Failure(reason), status=405, headers={"Allow": error.headers["Allow"]})
    except web.HTTPException as error:
        challenge = error.headers.get("WWW-Authenticate")
        headers = {"WWW-Authenticate": challenge} if challenge else None
        return _json(Failure(error.text or error.reason), status=error.status, headers=headers)


def _json(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=_encode(value), status=status, headers=headers, content_type="application/json")


def _refuse(reason: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=reason)


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    except (ConnectionError, web.RequestPayloadError) as error:
        raise _refuse(f"the body did not arrive whole: {error}") from None


def _decode(body: bytes, type_: type[T], what: str) -> T:
    try:
        return from_json(body, type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _refuse(f"malformed {what}: {error}") from None


def _decode_push(body: bytes, node: str) -> Push:
    try:
        push = _push_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _refuse(f"malformed push: {error}") from None
    if push.node != node:
        raise _refuse(f"malformed push: `$.node` is {push.node!r}, the URL says {node!r}")
    for number, report in enumerate(push.services):
        if report.service_id in RESERVED_IDS:
            reason = f"malformed push: {report.service_id!r} is a route and no id - at `$.services[{number}].service_id`"
            raise _refuse(reason)
    return push


def _query(request: web.Request, *allowed: str) -> dict[str, str]:
    """Return the parameters that have a value: an empty one filters nothing."""
    known = f"this route takes {', '.join(allowed)}" if allowed else "this route takes none"
    query: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in allowed:
            raise _refuse(f"unknown parameter {name!r}: {known}")
        if name in query:
            raise _refuse(f"parameter {name!r} is given twice")
        query[name] = value
    return {name: value for name, value in query.items() if value}


def _status(query: dict[str, str]) -> str | None:
    status = query.get("status")
    status = EARLIER_NAMES.get(status or "", status)
    if status is not None and status not in STATUSES:
        raise _refuse(f"unknown status {status!r}: one of {', '.join(STATUSES)}")
    return status


def _seconds(query: dict[str, str], default: float) -> float:
    text = query.get("timeout")
    if text is None:
        return default
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    raise _refuse(f"timeout is {text!r}: it must be a number of seconds above 0, such as 30 or 2.5")


def _revision(query: dict[str, str]) -> int | None:
    text = query.get("since")
    if text is None:
        return None
    if text.isdecimal() and text.isascii() and len(text) < 20:  # noqa: PLR2004 - more digits than any revision
        return int(text)
    raise _refuse(f"since is {text!r}: it must be a revision that this registry gave, or absent")
