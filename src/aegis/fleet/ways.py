"""Ways through one ssh connection to many servers: each gets a port of this machine for as long as it is wanted."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from aegis.errors import SiteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aegis.registry.sources import Address
    from aegis.schedulers.ssh import Ssh

LINGER_SECONDS: Final = (
    600.0  # that a way stays for the running answers of a server that takes no new requests
)
OPENED_AT_ONCE: Final = 8


class Ways:
    """Ports of this machine, each of which leads to one address over there.

    All of them end with the connection that they were opened on: `reach` then fails, and new ones have to be made.
    """

    def __init__(self, ssh: Ssh, clock: Callable[[], float] = time.monotonic) -> None:
        self._ssh, self._clock = ssh, clock
        self._connection = ssh.connection
        self._open: dict[Address, tuple[Address, contextlib.ExitStack]] = {}
        self._wanted: dict[Address, float] = {}  # when it was last wanted

    def reach(self, addresses: Iterable[Address]) -> dict[Address, Address]:
        """Return a port of this machine for each address, and close those that nobody has wanted for long.

        Raises:
            SiteError: the connection has been cut.
        """
        if self._ssh.connection is not self._connection or not self._ssh.is_alive:
            raise SiteError(f"the connection to {self._ssh.name} was cut")
        wanted, now = list(dict.fromkeys(addresses)), self._clock()
        self._wanted.update(dict.fromkeys(wanted, now))
        missing = [address for address in wanted if address not in self._open]
        if missing:
            with ThreadPoolExecutor(min(OPENED_AT_ONCE, len(missing))) as pool:
                for address, way in zip(missing, pool.map(self._way, missing), strict=True):
                    if way:
                        self._open[address] = way
        for address in [each for each, last in self._wanted.items() if now - last > LINGER_SECONDS]:
            del self._wanted[address]
            if way := self._open.pop(address, None):
                way[1].close()
        return {address: self._open[address][0] for address in wanted if address in self._open}

    def close(self) -> None:
        """Close all of them."""
        for _, stack in self._open.values():
            with contextlib.suppress(SiteError):
                stack.close()
        self._open.clear()

    def _way(self, address: Address) -> tuple[Address, contextlib.ExitStack] | None:
        stack = contextlib.ExitStack()
        try:
            return stack.enter_context(self._ssh.forward(*address)), stack
        except SiteError:
            if not self._ssh.is_alive:
                raise
            return None  # no host, or no port of this machine: it is tried again


@contextlib.contextmanager
def ways_of(ssh: Ssh) -> Iterator[Ways]:
    """Yield ways on the connection that there is now; they are closed with the block."""
    ways = Ways(ssh)
    try:
        yield ways
    finally:
        ways.close()
