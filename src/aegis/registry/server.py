"""Run the registry as a service of its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import signal
import time
from typing import TYPE_CHECKING, Final

from aiohttp import web

from aegis.errors import ConfigError, SiteError
from aegis.files import write_atomically
from aegis.processes import raise_file_limit
from aegis.registry import journal as journals
from aegis.registry.api import make_app
from aegis.registry.model import REMOVE_SECONDS, STALE_SECONDS
from aegis.registry.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.registry.federate import Federation

__all__ = ["make_app", "serve"]

KEEPALIVE_SECONDS: Final = 75.0
CLOSE_SECONDS: Final = 2.0  # for open requests at the end
BACKLOG: Final = 4096  # a whole fleet connects at once

log = logging.getLogger(__name__)


def serve(
    *,
    host: str = "0.0.0.0",  # noqa: S104 - clients are on other nodes
    port: int,
    token: str | None = None,
    protect_reads: bool = False,
    journal: Path | None = None,
    stale_after: float = STALE_SECONDS,
    remove_after: float = REMOVE_SECONDS,
    port_file: Path | None = None,
    federation: Federation | None = None,
    logs: Path | None = None,
) -> None:
    """Run a registry until SIGTERM or SIGINT (in the main thread, with an event loop of its own).

    Args:
        host: address to bind.
        port: port to bind, 0 for any free one.
        token: what the write verbs must present; None: anybody may write.
        protect_reads: ask for the token on reads too.
        journal: file that lets a restarted registry know its services at once.
        stale_after: seconds without a push until a service is shown unhealthy.
        remove_after: seconds without a push until a service is removed.
        port_file: gets the bound port, atomically, once the registry listens.
        federation: the registries whose services it shows besides its own.
        logs: folder with a log `ID.log` of each instance, which `/ui` shows to who presents the token.

    Raises:
        ConfigError: the options contradict each other.
        SiteError: the address cannot be bound, or the port file not written.
        NotFoundError: what is to be mirrored is not there.
    """
    if not 0 < stale_after < remove_after < math.inf:
        raise ConfigError(
            f"stale-after {stale_after:g} s and remove-after {remove_after:g} s do not fit",
            hint="give finite numbers with 0 < stale-after < remove-after",
        )
    if protect_reads and token is None:
        raise ConfigError("reads can only be protected with a token", hint="give one with --token-file")
    raise_file_limit()
    # Microseconds keep revisions rising over restarts, and exact in JSON numbers.
    store = Store(stale_after=stale_after, remove_after=remove_after, revision=time.time_ns() // 1000)
    writer = None
    if journal is not None:
        changes = journals.replay(journal)
        store.restore(changes)
        journals.compact(journal, changes)
        writer = journals.Journal(journal)
    try:
        app = make_app(
            store, token=token, protect_reads=protect_reads, journal=writer, federation=federation, logs=logs
        )
        asyncio.run(_run(app, host, port, port_file))
    finally:
        if writer:
            writer.close()


async def _run(app: web.Application, host: str, port: int, port_file: Path | None) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    runner = web.AppRunner(
        app, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS, shutdown_timeout=CLOSE_SECONDS
    )
    await runner.setup()
    try:
        await _listen(runner, host, port)
        bound = runner.addresses[0][1]
        log.info("the registry listens on %s port %d", host, bound)
        if port_file is not None:
            _tell_port(port_file, bound)
        await ended.wait()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    except OverflowError:
        raise ConfigError(f"port {port} does not exist", hint="ports are 0 to 65535") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = f"something listens there already: see with `aegis registry list --registry-port {port}`, or choose another --port"
            raise SiteError(f"port {port} on {host} is taken", hint=hint) from None
        raise SiteError(
            f"the registry cannot listen on {host} port {port}: {error.strerror or error}",
            hint="give an address of this machine with --host, and a --port of 1024 or more",
        ) from None


def _tell_port(file: Path, port: int) -> None:
    try:
        write_atomically(file, f"{port}\n")
    except OSError as error:
        raise SiteError(f"the port file cannot be written: {error}", hint="check --port-file") from None
