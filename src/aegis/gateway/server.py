"""A gateway as a process: it listens, follows its sources, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import socket
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Final

from aiohttp import web

from aegis.errors import ConfigError, SiteError
from aegis.files import write_atomically
from aegis.gateway.downstream import Downstream
from aegis.gateway.gateway import Gateway
from aegis.gateway.pages import Pages
from aegis.gateway.probing import Prober
from aegis.processes import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from aegis.gateway.settings import Settings, Sources

BACKLOG: Final = 4096  # a whole fleet of clients connects at once
TICK_SECONDS: Final = 0.5  # everything that is waited for is waited for in steps of this
WATCH_SECONDS: Final = 2.0  # between two looks whether the follower is to end
LINGER_SECONDS: Final = 1.0  # for requests that were on their way when the end was told
LOOK_SECONDS: Final = 0.05  # whether the last request has ended
PAGES_SECONDS: Final = 1.0  # for pages that are being sent, at the end


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - what this process tells


def serve(
    settings: Settings,
    sources: Sources,
    say: Callable[[str], None] = _print,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Run a gateway until SIGTERM or SIGINT (in the main thread, with an event loop of its own).

    At the first signal it takes no more connections, and lets running requests end; at the second it ends at once.
    SIGHUP opens the access log anew, and reads the certificate again.

    Args:
        settings: what it is started with.
        sources: which instances there are; followed already.
        say: gets what a person should know.
        ready: gets the base URL once the gateway listens (default: `say` does).

    Raises:
        ConfigError: files of keys or certificates are wrong.
        SiteError: the address cannot be bound, or the port file not written.
    """
    raise_file_limit()
    tls = tls_of(settings)
    gateway = Gateway(settings)
    try:
        asyncio.run(
            _run(gateway, sources, tls, say, ready or (lambda url: say(f"the gateway listens: {url}")))
        )
    finally:
        gateway.account.close()


async def _run(
    gateway: Gateway,
    sources: Sources,
    tls: ssl.SSLContext | None,
    say: Callable[[str], None],
    ready: Callable[[str], None],
) -> None:
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, _again, gateway, tls, say)
    async with running(gateway, sources, tls) as server:
        port = server.sockets[0].getsockname()[1]
        _tell_port(gateway.settings, port)
        ready(_base_url(gateway.settings, port))
        _calm_collector()
        await signals.get()
        server.close()
        await _drain(gateway, signals, say)


def _calm_collector() -> None:
    """Let the collector of cycles look at young objects only, but for once in a long while.

    What lives long here are memories of prefixes, a hundred thousand, and no cycles: to look through them takes 30 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 1000)


@contextlib.asynccontextmanager
async def running(
    gateway: Gateway, sources: Sources, tls: ssl.SSLContext | None = None
) -> AsyncIterator[asyncio.Server]:
    """Let a gateway listen while the block runs; at its end every connection is cut.

    Raises:
        ConfigError: there is no such port.
        SiteError: the address cannot be bound.
    """
    runner = web.AppRunner(
        Pages(gateway, sources).app(),
        access_log=None,
        shutdown_timeout=PAGES_SECONDS,
        handler_cancellation=True,
    )
    await runner.setup()
    gateway.pages = _pages_of(runner)
    revision, targets = sources.now()
    gateway.update(targets)
    server = await _listen(gateway, tls)
    try:
        with _following(gateway, sources, revision):
            async with _ticking(gateway):
                yield server
    finally:
        server.close()
        for client in tuple(gateway.clients):
            client.transport.abort()
        await runner.cleanup()
        gateway.pool.close()


def _pages_of(runner: web.AppRunner) -> Callable[[], asyncio.Protocol]:
    """Return what makes the protocol of a connection that asks for a page."""
    server = runner.server
    assert server is not None  # noqa: S101 - it is set up
    return server


async def _drain(gateway: Gateway, signals: asyncio.Queue[int], say: Callable[[str], None]) -> None:
    """Let running requests end, and take those that come on connections that are open."""
    loop = asyncio.get_running_loop()
    gateway.draining = True
    grace = gateway.settings.grace_seconds
    if gateway.exchanges:
        say(
            f"the gateway ends when {_requests(gateway)} ended, in {grace:g} s at the latest; Ctrl-C ends it now"
        )
    now = loop.time()
    end, least = now + grace, now + min(LINGER_SECONDS, grace)
    while signals.empty() and (now := loop.time()) < end:
        if not gateway.clients or (now >= least and all(client.idle for client in gateway.clients)):
            return
        await asyncio.sleep(LOOK_SECONDS)
    if gateway.exchanges:
        say(f"the gateway ends: {_requests(gateway)} not ended")


def _requests(gateway: Gateway) -> str:
    number = len(gateway.exchanges)
    return f"{number} request has" if number == 1 else f"{number} requests have"


@contextlib.contextmanager
def _following(gateway: Gateway, sources: Sources, revision: int) -> Iterator[None]:
    """Tell the gateway of every change while the block runs; the sources are waited for in a thread."""
    loop = asyncio.get_running_loop()
    ended = threading.Event()

    def follow() -> None:
        known = revision
        while not ended.is_set():
            found, targets = sources.wait(known, WATCH_SECONDS)
            if found != known and not ended.is_set():
                known = found
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(gateway.update, targets)

    threading.Thread(target=follow, name="gateway-sources", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextlib.asynccontextmanager
async def _ticking(gateway: Gateway) -> AsyncIterator[None]:
    """Let time pass for the gateway while the block runs."""
    prober = Prober(gateway)

    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            gateway.sweep()
            prober.look()

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await prober.close()


async def _listen(gateway: Gateway, tls: ssl.SSLContext | None) -> asyncio.Server:
    host, port = gateway.settings.host, gateway.settings.port
    loop = asyncio.get_running_loop()
    handshake = gateway.settings.head_seconds if tls else None
    try:
        return await loop.create_server(
            lambda: Downstream(gateway),
            host or None,
            port,
            backlog=BACKLOG,
            reuse_address=True,
            ssl=tls,
            ssl_handshake_timeout=handshake,
        )
    except OverflowError:
        raise ConfigError(f"port {port} does not exist", hint="ports are 0 to 65535") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = "choose another --port, or 0 for any free one"
            raise SiteError(f"port {port} on {host} is taken", hint=hint) from None
        raise SiteError(
            f"the gateway cannot listen on {host} port {port}: {error.strerror or error}",
            hint="give an address of this machine with --host, and a --port of 1024 or more",
        ) from None


def _tell_port(settings: Settings, port: int) -> None:
    if settings.port_file is None:
        return
    try:
        write_atomically(settings.port_file, f"{port}\n")
    except OSError as error:
        raise SiteError(f"the port file cannot be written: {error}", hint="check --port-file") from None


def _base_url(settings: Settings, port: int) -> str:
    """Return what clients are to be given; the name of this machine where any address will do."""
    scheme = "https" if settings.tls_certificate else "http"
    host = socket.getfqdn() if settings.host in {"", "0.0.0.0", "::"} else settings.host  # noqa: S104 - compared
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _again(gateway: Gateway, tls: ssl.SSLContext | None, say: Callable[[str], None]) -> None:
    """Open anew what may have been replaced; what is wrong changes nothing."""
    gateway.account.reopen()
    if tls is not None:
        try:
            _load(tls, gateway.settings)
        except ConfigError as error:
            say(f"the certificate stays as it was: {error.message}")


def tls_of(settings: Settings) -> ssl.SSLContext | None:
    """Return what encrypts connections, where that is asked for.

    Raises:
        ConfigError: certificate or key are not usable.
    """
    if settings.tls_certificate is None:
        if settings.tls_key is not None:
            raise ConfigError("a TLS key without its certificate", hint="give --tls-certificate too")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    _load(context, settings)
    return context


def _load(context: ssl.SSLContext, settings: Settings) -> None:
    certificate, key = settings.tls_certificate, settings.tls_key
    assert certificate is not None  # noqa: S101 - else there is no context
    for flag, file in (("--tls-certificate", certificate), ("--tls-key", key)):
        if file is None:
            continue
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{flag} {str(file)!r} cannot be read: {error.strerror}") from None
        if b"-----BEGIN " not in text:
            raise ConfigError(f"{flag} {str(file)!r} is no PEM file", hint="convert it with `openssl`")
        if b"ENCRYPTED" in text:
            raise ConfigError(
                f"{flag} {str(file)!r} is encrypted",
                hint="nobody is there to type a passphrase: give one without",
            )
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        where = f"{str(certificate)!r}" + (f" and {str(key)!r}" if key else "")
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{where}: the key does not belong to the certificate") from None
        raise ConfigError(
            f"{where}: no certificate and key that can be used",
            hint=None if key else "give the key with --tls-key",
        ) from None
