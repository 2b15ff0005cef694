"""The life of one simulated server: bind, meet the other ranks, start up, serve, and end on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from aegis.engines.simulator import ranks
from aegis.engines.simulator.faults import crash

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiohttp import web

    from aegis.engines.simulator import Settings
    from aegis.engines.simulator.server import Simulator

BACKLOG: Final = 4096
KEEPALIVE_SECONDS: Final = 75.0
MAX_BODY: Final = 64 * 2**20  # bytes
CANCEL_SECONDS: Final = 0.05  # for handlers that outlive the grace


def run(settings: Settings) -> int:
    """Run one server until it ends; return its exit code."""
    return asyncio.run(_live(settings))


class _End:
    """What this process waits for while it does anything else: an exit code."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.code: asyncio.Future[int] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.come, 0)

    def come(self, code: int, message: str | None = None) -> None:
        """End, the first time this is called."""
        if not self.code.done():
            self.code.set_result(code)
            if message:
                print(f"aegis sim: {message}", file=sys.stderr, flush=True)  # noqa: T201 - this process' log

    async def before(self, work: Awaitable[object], seconds: float | None = None) -> bool:
        """Tell whether the end comes first, or neither does in time; the work is then given up."""
        task = asyncio.ensure_future(work)
        futures: set[asyncio.Future[Any]] = {task, self.code}
        await asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self.code.done() or not task.done():
            task.cancel()
            return True
        task.result()
        return False


async def _live(settings: Settings) -> int:
    end = _End()
    try:
        return await (_follow if settings.node_rank else _lead)(settings, end)
    except OSError as error:
        print(f"{_named(error)}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - this process' log
        return 1


def _named(error: OSError) -> str:
    return "OSError" if error.errno else type(error).__name__


async def _lead(settings: Settings, end: _End) -> int:
    """Serve the API, once every other rank is here."""
    sock = bind(settings.host, settings.port)
    leader = ranks.Leader(settings.nnodes, lambda rank: end.come(1, f"rank {rank} is gone"))
    if settings.nnodes > 1:
        await leader.open(settings.master_port)
        if await end.before(leader.joined.wait(), settings.join_timeout):
            end.come(1, f"not all {settings.nnodes} ranks came within {settings.join_timeout:g} s")
            return end.code.result()
    if await _start_up(settings, end):
        return end.code.result()
    await _serve(settings, sock, end)
    return end.code.result()


async def _follow(settings: Settings, end: _End) -> int:
    """Stay with rank 0 as long as it lives; there is no API here."""
    address, port, rank = settings.master_addr, settings.master_port, settings.node_rank
    joining = asyncio.ensure_future(ranks.join(address, port, rank, settings.nnodes))
    if await end.before(joining, settings.join_timeout):
        end.come(1, f"rank 0 does not answer at {address}:{port} within {settings.join_timeout:g} s")
        return end.code.result()
    reader, _writer = joining.result()
    watch = asyncio.ensure_future(ranks.until_closed(reader))
    watch.add_done_callback(lambda _: end.come(1, f"rank 0 at {address}:{port} is gone"))
    if not await _start_up(settings, end):
        _say(f"Simulated rank {rank} of {settings.nnodes} of {settings.model!r}, with {address}:{port}")
    return await end.code


async def _start_up(settings: Settings, end: _End) -> bool:
    """Take the time that loading takes; tell whether it ended there."""
    await asyncio.wait({end.code}, timeout=settings.startup_seconds)
    if settings.faults.fail_start is not None and not end.code.done():
        _say(settings.faults.fail_start)
        end.come(1)
    if settings.faults.crash_after_seconds is not None:
        asyncio.get_running_loop().call_later(settings.faults.crash_after_seconds, crash)
    return end.code.done()


async def _serve(settings: Settings, sock: socket.socket, end: _End) -> None:
    from aegis.engines.simulator.server import Simulator  # noqa: PLC0415 - a failing start, a follower: no aiohttp

    simulator = Simulator(settings)
    server = web_server(simulator)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server, sock=sock, backlog=BACKLOG)
    if settings.faults.hang_health_after_seconds is not None:
        loop.call_later(settings.faults.hang_health_after_seconds, simulator.faults.turn_deaf)
    host, port = sock.getsockname()[:2]
    gc.freeze()
    _say(f"Simulated server of {settings.model!r} (no model) on http://{host}:{port} (pid {os.getpid()})")
    if await end.code == 0:
        listener.close()
        server.pre_shutdown()
        deadline = time.monotonic() + settings.grace
        while simulator.open_requests and time.monotonic() < deadline:  # noqa: ASYNC110 - only at the end
            await asyncio.sleep(0.01)
        await server.shutdown(CANCEL_SECONDS)


def web_server(simulator: Simulator) -> web.Server:
    """Return aiohttp's plain server: no router and no middleware on the way to the handler."""
    import logging  # noqa: PLC0415 - with aiohttp, as above

    from aiohttp import web  # noqa: PLC0415 - as above

    loop = asyncio.get_running_loop()
    log = logging.getLogger("aegis.sim")
    if simulator.settings.access_log:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    return web.Server(
        simulator.handle,
        request_factory=lambda message, payload, protocol, writer, task: web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY
        ),
        handler_cancellation=True,
        keepalive_timeout=KEEPALIVE_SECONDS,
        access_log=log if simulator.settings.access_log else None,
    )


def bind(host: str, port: int) -> socket.socket:
    """Take a port without listening on it, so that a port in use is told at once.

    Raises:
        OSError: it is in use, or the host has no address here.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - this process' log
