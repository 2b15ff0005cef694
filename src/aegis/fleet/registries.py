"""The registry and the servers of a job, from wherever it is asked for: through a transport."""

from __future__ import annotations

import contextlib
import http.client
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aegis.errors import SiteError
from aegis.fleet.jobs import run_of
from aegis.registry.client import RegistryClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.runs import Manifest
    from aegis.schedulers.transport import Transport


@contextlib.contextmanager
def registry_of(transport: Transport, manifest: Manifest, timeout: float) -> Iterator[RegistryClient]:
    """Yield a client of a job's registry, for as long as the way to it is held; it may write for who may read the token.

    Raises:
        SiteError: there is no way to it.
    """
    try:
        parts = urlsplit(manifest.registry_url or "")
        there = parts.hostname or "", parts.port or 0
    except ValueError:
        raise SiteError(f"{manifest.registry_url!r} is no registry's address") from None
    try:
        token = transport.read(str(run_of(manifest).token)).decode("ascii", "replace").strip() or None
    except OSError:
        token = None
    with transport.forward(*there) as (host, port):
        yield RegistryClient(f"http://{_bracketed(host)}:{port}", token, timeout)


def endpoints_of(transport: Transport, manifest: Manifest) -> list[str]:
    """Return the lines of a job's endpoints file; nothing where there is none."""
    try:
        return transport.read(manifest.endpoints_file or "").decode("utf-8", "replace").split()
    except (OSError, SiteError):
        return []


def answers(transport: Transport, endpoint: str, timeout: float) -> bool:
    """Tell whether a server says that it is well."""
    return get(transport, endpoint, "/health", timeout) is not None


def get(transport: Transport, endpoint: str, path: str, timeout: float) -> bytes | None:
    """Return what a server answers with status 200; None where it does not."""
    host, _, port = endpoint.rpartition(":")
    if not port.isdecimal():
        return None
    try:
        with transport.forward(host.strip("[]"), int(port)) as (near, number):
            connection = http.client.HTTPConnection(near, number, timeout=timeout)
            try:
                connection.request("GET", path, headers={"Connection": "close"})
                response = connection.getresponse()
                return response.read() if response.status == http.client.OK else None
            finally:
                connection.close()
    except (OSError, UnicodeError, http.client.HTTPException, SiteError):
        return None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
