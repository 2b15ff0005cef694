"""One-token requests to instances that are silent, or that were taken out and may be well again."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec

from aegis.gateway.request import Request

if TYPE_CHECKING:
    from collections.abc import Collection

    from aegis.gateway.answer import AnswerReader
    from aegis.gateway.balance import Backend
    from aegis.gateway.gateway import Gateway

COMPLETIONS: Final = b"/v1/completions"
EMBEDDINGS: Final = b"/v1/embeddings"


class Prober:
    """Asks the suspects that the balance names, all at once."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._tasks: set[asyncio.Task[None]] = set()

    def look(self) -> None:
        """Begin to ask whoever is suspect now; and move requests away from instances that are out."""
        balance = self._gateway.balance
        for backend in balance.suspects():
            task = asyncio.get_running_loop().create_task(self._probe(backend))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if any(backend.state == "open" and backend.outstanding for backend in balance.backends):
            for exchange in tuple(self._gateway.exchanges):
                if exchange.backend is not None and exchange.backend.state == "open":
                    exchange.move()

    async def close(self) -> None:
        """Stop asking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _probe(self, backend: Backend) -> None:
        gateway = self._gateway
        try:
            async with asyncio.timeout(gateway.settings.policy.probe_seconds):
                answered = await self._ask(backend)
        except OSError:  # a time-out is one
            answered = False
        gateway.balance.probed(backend, answered=answered)
        gateway.serve_line()
        self.look()

    async def _ask(self, backend: Backend) -> bool:
        gateway = self._gateway
        connection = await gateway.pool.open(backend.target)
        waiter = _Waiter()
        try:
            request = request_for(backend, gateway.embedders)
            connection.ask(waiter, request.to_server(gateway.upstream_key, guarded=True))
            status = await waiter.status
        finally:
            connection.abort()
        return 0 < status < HTTPStatus.INTERNAL_SERVER_ERROR


class _Waiter:
    """Waits for the status of an answer; 0 is none."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def heard(self, reader: AnswerReader, body: bytes) -> None:  # noqa: ARG002 - as every asker
        self._tell(reader.status)

    def whole(self, reader: AnswerReader) -> None:
        self._tell(reader.status)

    def lost(self, why: str, *, stale: bool) -> None:  # noqa: ARG002 - as every asker
        if not self.status.done():
            self.status.set_result(0)

    def _tell(self, status: int) -> None:
        if status and not self.status.done():
            self.status.set_result(status)


def request_for(backend: Backend, embedders: Collection[str]) -> Request:
    """Return a request that costs an instance as little as can be, and that only a working engine answers.

    Args:
        backend: whom it is for.
        embedders: models that are asked for embeddings; the others write text.
    """
    model = backend.target.models[0] if backend.target.models else ""
    path, asked = COMPLETIONS, {"model": model, "prompt": "a", "max_tokens": 1}
    if model in embedders:
        path, asked = EMBEDDINGS, {"model": model, "input": "a"}
    own = {b"host": backend.target.address.encode(), b"content-type": b"application/json"}
    request = Request(b"POST", path, own, [], minor=1, keep_alive=True)
    request.body = msgspec.json.encode(asked)
    return request
