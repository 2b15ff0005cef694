"""Servers inside the test's own loop that answer as a test says, and note what they were asked."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web
from msgspec import Struct

from aegis.api.targets import Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

DROP = -1  # a status: close the connection instead
HANG = -2  # a status: answer never


class Reply(Struct, frozen=True):
    """What a server does with a request."""

    status: int = 200
    body: Any = None  # None: a good answer that tells the prompt; bytes as they are
    headers: dict[str, str] = {}


def good(asked: dict[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    return {
        "id": "x",
        "choices": [{"text": f"about {asked['prompt']}", "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }


def error(message: str, status: int = 400, **more: Any) -> Reply:
    return Reply(status, {"error": {"message": message, "type": "BadRequestError", "code": status, **more}})


class Server:
    """One server; `reply` decides by the prompt and by how often that was asked here."""

    def __init__(self, reply: Callable[[str, int], Reply], seconds: float = 0.0) -> None:
        self._reply, self._seconds = reply, seconds
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.now = self.most = 0  # requests at once
        self.target: Target

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/metrics":
            return web.Response(status=404)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._answer(request)
        finally:
            self.now -= 1

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = json.loads(await request.read())
        prompt = asked["prompt"]
        self.asked[prompt] += 1
        self.bodies.append(asked)
        reply = self._reply(prompt, self.asked[prompt])
        await asyncio.sleep(self._seconds if reply.status != HANG else 3600)
        if reply.status == DROP:
            assert request.transport
            request.transport.abort()
            return web.Response()
        content = good(asked) if reply.body is None else reply.body
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return web.Response(status=reply.status, body=data, headers=reply.headers)


def always(reply: Reply) -> Callable[[str, int], Reply]:
    return lambda _prompt, _time: reply


@asynccontextmanager
async def serving(*servers: Server, models: tuple[str, ...] = ("m",)) -> AsyncIterator[list[Target]]:
    """Run servers on free ports until the end of the block."""
    runners = []
    for server in servers:
        runner = web.ServerRunner(web.Server(server.handle), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.target = Target("127.0.0.1", runner.addresses[0][1], models)
        runners.append(runner)
    try:
        yield [server.target for server in servers]
    finally:
        await asyncio.gather(*[runner.cleanup() for runner in runners])


def during(body: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine."""

    async def limited() -> None:
        async with asyncio.timeout(30):
            await body()

    asyncio.run(limited())
