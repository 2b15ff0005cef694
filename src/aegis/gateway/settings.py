"""Every number and file that a gateway is started with."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Annotated, Protocol

from msgspec import Meta, Struct

from aegis.gateway.balance import Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.api.targets import Target
    from aegis.registry.client import RegistryClient

Seconds = Annotated[float, Meta(gt=0)]
MIB = 2**20


class Settings(Struct, frozen=True, kw_only=True):
    """What a gateway is started with; times in seconds, sizes in bytes."""

    host: str = "0.0.0.0"  # noqa: S104 - clients are on other machines
    port: int = 0  # 0: any free one
    port_file: Path | None = None  # gets the bound port once the gateway listens

    # Who may ask, and what is written down about it.
    tls_certificate: Path | None = None  # PEM, with the chain; None: plain HTTP
    tls_key: Path | None = None  # PEM; None: it is in the certificate's file
    keys_file: Path | None = None  # hashed keys of clients (`aegis gateway keys`); None: everybody may ask
    upstream_key: str | None = None  # what servers are asked with, in the place of what a client presents
    access_log: Path | None = None  # a JSON line for every request; `-` is standard output, None: none
    metrics: bool = True  # count requests, tokens and times for `/metrics`

    # What a client may do.
    max_head: int = 64 * 2**10  # request line and headers: beyond it 431
    max_body: int = 64 * MIB  # a picture or two in base64 fit; beyond it 413
    head_seconds: Seconds = 20.0  # from the first byte of a request to the end of its head
    body_seconds: Seconds = 60.0  # for the body; one that comes at 64 KiB/s or faster may take longer
    keep_alive_seconds: Seconds = 75.0  # that a connection may be idle
    send_seconds: Seconds = 300.0  # that a client may leave an answer unread

    # What a server may do.
    connect_seconds: Seconds = 5.0  # nodes of a cluster answer within milliseconds
    first_byte_seconds: Seconds = 3600.0  # an answer that is not streamed begins at its end
    idle_seconds: Seconds | None = None  # between two pieces of an answer; None: a wedge is seen by probing
    attempts: int = 4  # of one request, on as many instances
    policy: Policy = Policy()  # what instances get, and when they are taken out, probed and taken back

    # When there is no instance for a request.
    queue_length: int = 4096  # requests that may wait for an instance; beyond it 429
    queue_seconds: Seconds = 60.0  # that a request may wait for a place; then 429
    absent_seconds: Seconds = 10.0  # that it may wait for the first instance of its model; then 503

    grace_seconds: Seconds = 30.0  # for running requests, once the gateway is told to end


class Sources(Protocol):
    """Who knows which instances there are: `aegis.gateway.sources.Sources` does. Any thread may ask."""

    @property
    def problem(self) -> str:
        """What is wrong with the sources at present; the last good answer stands."""

    @property
    def registries(self) -> Sequence[RegistryClient]:
        """The registries among them, for the dashboard."""

    def now(self) -> tuple[int, tuple[Target, ...]]:
        """Return a revision, which grows with every change, and the instances."""

    def wait(self, revision: int, seconds: float) -> tuple[int, tuple[Target, ...]]:
        """Return the same once there is another revision, or after some seconds."""
