"""The workers as the driver sees them: started where they are wanted, admitted by a secret, given orders."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import secrets
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from msgspec import Struct

from aegis.errors import SiteError
from aegis.files import PRIVATE, write_atomically
from aegis.mapper.files import worker as program
from aegis.mapper.files.site import short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aegis.mapper.files.site import Site

STRANGER_SECONDS: Final = 20.0  # for who connects to show that it knows the secret
JOIN_SECONDS: Final = 120.0  # from the start of a worker to its first word
LEAVE_SECONDS: Final = 5.0
STARTS: Final = 5  # of a worker, without a good while in between
PAUSE: Final = 2.0  # seconds before it is started again, doubled each time
GOOD_WHILE: Final = 600.0
LINE_LIMIT: Final = 1 << 20


class Ended(Struct, frozen=True):
    """What became of a run."""

    code: int = 0  # of the program; negative: the signal that ended it
    error: str = ""  # of the worker: the program could not be started, or its output not archived
    errno: int = 0
    tail: str = ""  # of the log
    lost: bool = False  # the worker is: nothing is known


class Worker:
    """One worker that has come."""

    def __init__(self, names: list[str], scratch: str, writer: asyncio.StreamWriter) -> None:
        self.names, self.scratch = names, scratch
        self.came = time.monotonic()
        self._writer = writer
        self._runs: dict[int, asyncio.Future[Ended]] = {}

    def run(self, number: int, order: dict[str, Any]) -> asyncio.Future[Ended]:
        """Order a run; its future never fails."""
        future = self._runs[number] = asyncio.get_running_loop().create_future()
        self._send({"do": "run", "id": number, **order})
        return future

    def kill(self, number: int, seconds: float) -> None:
        """End the program of a run, by force after some seconds."""
        self._send({"do": "kill", "id": number, "seconds": seconds})

    def hear(self, message: dict[str, Any]) -> None:
        """Take what it tells."""
        future = self._runs.pop(message["id"], None)
        if future and not future.done():
            told = (str(message[key]) for key in ("error", "tail"))
            future.set_result(Ended(int(message["code"]), next(told), int(message["errno"]), next(told)))

    def leave(self) -> None:
        """It is gone, or is to go: nothing more is heard of its runs."""
        self._writer.close()
        while self._runs:
            _, future = self._runs.popitem()
            if not future.done():
                future.set_result(Ended(lost=True))

    def _send(self, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")


class Place(Struct):
    """Where a worker is wanted."""

    worker: Worker | None = None
    starter: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    started: float = 0.0
    starts: int = 0
    not_before: float = 0.0
    name: str = ""  # as the launcher knows the node


class Crew:
    """All workers; to be used with `async with`.

    Args:
        site: how they are started.
        folder: that all nodes see, for the time of this run alone.
        scratch: folder on the workers' machines; "": they choose.
        changed: is called when a worker has come or gone.
    """

    def __init__(self, site: Site, folder: Path, scratch: str, changed: Callable[[], None]) -> None:
        self.site, self._folder, self._scratch, self._changed = site, folder, scratch, changed
        self._secret = secrets.token_hex(32).encode()
        self._places: dict[str, Place] = {}
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[Any]] = set()
        self._starters: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        self._bring()
        anywhere = "0.0.0.0" if self.site.launcher != "local" else "127.0.0.1"  # noqa: S104 - strangers are refused
        self._server = await asyncio.start_server(self._admit, anywhere, 0, limit=LINE_LIMIT, backlog=4096)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server  # noqa: S101 - __aenter__
        self._server.close()
        for place in self._places.values():
            if place.worker:
                place.worker.leave()
        for task in self._talks:
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        await asyncio.to_thread(_end, self._starters)

    def _bring(self) -> None:
        write_atomically(self._folder / "worker.py", Path(program.__file__).read_bytes())
        write_atomically(self._folder / "secret", self._secret, PRIVATE)

    def at(self, node: str) -> Worker | None:
        """Return the worker for instances on a node, if it is there."""
        place = self._places.get(self.site.place(node))
        return place.worker if place else None

    def want(self, nodes: Iterable[str]) -> None:
        """Start a worker for each of these nodes that has none.

        Raises:
            SiteError: no worker can be started anywhere.
        """
        now = time.monotonic()
        for node in nodes:
            self._places.setdefault(self.site.place(node), Place(name=self.site.name(node)))
        waiting = []
        for key, place in self._places.items():
            if place.worker is None and self._may_start(place, now):
                waiting.append(key)
        for group in self.site.groups(waiting) if waiting else ():
            self._start(group, now)
        if all(self._given_up(place) for place in self._places.values()) and self._places:
            said = next((line for place in self._places.values() if (line := _last_line(place.log))), "")
            raise SiteError(f"no worker can be started{said and f': {said}'}", hint="try --where here")

    def _may_start(self, place: Place, now: float) -> bool:
        if place.starter is not None:
            if place.starter.poll() is None and now < place.started + JOIN_SECONDS:
                return False
            place.starter = None
            place.not_before = now + PAUSE * 2.0 ** (place.starts - 1)
        return place.starts < STARTS and now >= place.not_before

    def _given_up(self, place: Place) -> bool:
        return place.worker is None and place.starter is None and place.starts >= STARTS

    def _start(self, keys: list[str], now: float) -> None:
        assert self._server  # noqa: S101 - __aenter__
        port = self._server.sockets[0].getsockname()[1]
        number = len(self._starters)
        words = [self.site.python, "-I", "-X", "utf8", str(self._folder / "worker.py")]
        words += ["--driver", f"{self.site.address}:{port}", "--secret-file", str(self._folder / "secret")]
        if self._scratch:
            words += ["--scratch", self._scratch]
        names = [self._places[key].name for key in keys]
        hosts, log = self._folder / f"hosts.{number}", self._folder / f"log.{number}"
        try:
            write_atomically(hosts, "".join(f"{name}\n" for name in names))
            starter = self.site.start(self.site.command(names, words, hosts), log)
        except OSError as error:
            raise SiteError(f"workers cannot be started: {error.filename}: {error.strerror}") from None
        self._starters.append(starter)
        for key in keys:
            place = self._places[key]
            place.starter, place.log, place.started = starter, log, now
            place.starts += 1

    # Who connects

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task  # noqa: S101 - asyncio calls this in one
        self._talks.add(task)
        try:
            async with asyncio.timeout(STRANGER_SECONDS):
                if not await self._knows_the_secret(reader, writer):
                    return
                hello = json.loads(await reader.readline())
            program.tune(writer.get_extra_info("socket"))
            await self._talk(Worker(hello["names"], hello["scratch"], writer), reader)
        except (OSError, ValueError, KeyError, asyncio.IncompleteReadError):
            pass  # a stranger, or a worker that died in the middle of a word
        except asyncio.CancelledError:
            pass  # the end of the crew: this task is the last to know
        finally:
            writer.close()
            self._talks.discard(task)

    async def _knows_the_secret(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first = await reader.readexactly(len(program.HELLO) + program.NONCE)
        if not first.startswith(program.HELLO):
            return False
        theirs, mine = first[len(program.HELLO) :], os.urandom(program.NONCE)
        writer.write(mine + program.proof(self._secret, b"answer", theirs, mine))
        shown = await reader.readexactly(program.NONCE)
        return hmac.compare_digest(shown, program.proof(self._secret, b"ask", theirs, mine))

    async def _talk(self, worker: Worker, reader: asyncio.StreamReader) -> None:
        names = (short(name) for name in worker.names)
        place = next((self._places[name] for name in names if name in self._places), None)
        if place is None or place.worker is not None:
            return  # nobody waits for it
        place.worker = worker
        self._changed()
        try:
            while line := await reader.readline():
                worker.hear(json.loads(line))
                self._changed()
        finally:
            place.worker = place.starter = None
            if time.monotonic() - worker.came > GOOD_WHILE:
                place.starts = 0
            place.not_before = time.monotonic() + PAUSE * 2.0 ** max(place.starts - 1, 0)
            worker.leave()
            self._changed()


def _end(starters: list[subprocess.Popen[bytes]]) -> None:
    """Give the workers time to leave by themselves; then end what started them."""
    deadline = time.monotonic() + LEAVE_SECONDS
    for starter in starters:
        try:
            starter.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            starter.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                starter.wait(LEAVE_SECONDS)
            starter.kill()
            starter.wait()


def _last_line(log: Path | None) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines() if log else []
    except OSError:
        return ""
    return lines[-1] if lines else ""
