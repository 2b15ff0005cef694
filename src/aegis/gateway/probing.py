"""One-token requests to instances that are silent, or that were taken out and may be well again."""

from __future__ import annotations

import asyncio
import re
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
METRICS: Final = b"/metrics"
METRICS_SECONDS: Final = 10.0
TOKENS: Final = re.compile(
    rb"^(?:vllm|sglang):(?:prompt|generation)_tokens_total(?:\{.*\})? (\S+)$", re.MULTILINE
)


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
        before, answered = await asyncio.gather(self._tokens(backend), self._answers(backend))
        if not answered and before:
            # Long answers that are not streamed may fill it: a probe then waits its turn as they do.
            answered = await self._tokens(backend) not in ([], before)
        gateway.balance.probed(backend, answered=answered)
        gateway.serve_line()
        self.look()

    async def _answers(self, backend: Backend) -> bool:
        """Tell whether a one-token request is answered."""
        request = request_for(backend, self._gateway.embedders)
        status, _ = await self._ask(backend, request, self._gateway.settings.policy.probe_seconds)
        return 0 < status < HTTPStatus.INTERNAL_SERVER_ERROR

    async def _tokens(self, backend: Backend) -> list[bytes]:
        """Return the counters of what an engine has read and written; none where it does not tell."""
        request = Request(b"GET", METRICS, _own(backend), [], minor=1, keep_alive=False)
        seconds = min(METRICS_SECONDS, self._gateway.settings.policy.probe_seconds)
        status, page = await self._ask(backend, request, seconds, whole=True)
        return TOKENS.findall(page) if status == HTTPStatus.OK else []

    async def _ask(
        self, backend: Backend, request: Request, seconds: float, *, whole: bool = False
    ) -> tuple[int, bytes]:
        """Return the status of an answer (0: there is none in time) and, if it is wanted as a whole, its body."""
        gateway = self._gateway
        waiter = _Waiter(whole=whole)
        try:
            async with asyncio.timeout(seconds):
                connection = await gateway.pool.open(backend.target)
                try:
                    connection.ask(waiter, request.to_server(gateway.upstream_key, guarded=True))
                    return await waiter.status, b"".join(waiter.body)
                finally:
                    connection.abort()
        except OSError:  # a time-out is one
            return 0, b""


class _Waiter:
    """Waits for the status of an answer, or until it is whole; status 0 is none."""

    def __init__(self, *, whole: bool) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.body: list[bytes] = []
        self._whole = whole

    def heard(self, reader: AnswerReader, body: bytes) -> None:
        if self._whole:
            self.body.append(body)
        else:
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
    own = {**_own(backend), b"content-type": b"application/json"}
    request = Request(b"POST", path, own, [], minor=1, keep_alive=True)
    request.body = msgspec.json.encode(asked)
    return request


def _own(backend: Backend) -> dict[bytes, bytes]:
    return {b"host": backend.target.address.encode()}
