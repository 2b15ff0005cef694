"""One try of one file: the program that runs for it, and what its end means."""

from __future__ import annotations

import asyncio
import http.client
import signal
from typing import TYPE_CHECKING, Any, Final

from aegis.mapper.files.publish import LOG

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.api.targets import Target
    from aegis.mapper.files.crew import Ended, Worker

ASK_SECONDS: Final = 5.0  # for an instance to answer, when a program failed
ABANDON_SECONDS: Final = 120.0  # after its program was killed by force, until a worker is given up


class Try:
    """A program that runs for a file."""

    def __init__(self, number: int, position: int, target: Target, worker: Worker, folder: Path) -> None:
        self.number, self.position, self.target, self.worker = number, position, target, worker
        self.part = folder / "parts" / f"{number}"
        self.log = folder / "parts" / f"{number}{LOG}"
        self.future: asyncio.Future[Ended] | None = None
        self.killed = ""  # why

    def start(self, order: dict[str, Any]) -> asyncio.Future[Ended]:
        """Start it; the future tells of its end."""
        order = {**order, "part": str(self.part), "log": str(self.log)}
        self.future = self.worker.run(self.number, order)
        return self.future

    def kill(self, why: str, seconds: float) -> None:
        """End it, by force after some seconds; a worker that then does not tell of its end is given up."""
        if not self.killed:
            self.killed = why
            self.worker.kill(self.number, seconds)
            asyncio.get_running_loop().call_later(seconds + ABANDON_SECONDS, self._abandon)

    def _abandon(self) -> None:
        if self.future and not self.future.done():
            self.worker.leave()


def answers(target: Target) -> bool:
    """Tell whether anything of HTTP answers there."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=ASK_SECONDS)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        return connection.getresponse().status < http.client.INTERNAL_SERVER_ERROR
    except (OSError, UnicodeError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def without_proxy(listed: str, host: str) -> str:
    """Return a list of hosts that are reached without a proxy, and this one."""
    return f"{listed},{host}" if listed else host


def reason_of(ended: Ended) -> str:
    """Return why a try failed, in a line."""
    if ended.error:
        return ended.error
    what = f"exit code {ended.code}"
    if ended.code < 0:
        try:
            what = f"ended by {signal.Signals(-ended.code).name}"
        except ValueError:
            what = f"ended by signal {-ended.code}"
    last = (ended.tail.strip().splitlines() or [""])[-1].strip()
    return f"{what}: {last}" if last else what
