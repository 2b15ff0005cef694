"""Many open streams at once through a gateway whose servers are being killed: what became of each is counted exactly.

    python streams.py PORT STREAMS SECONDS

JSON comes back: how many streams were whole; the server (process id) of each that broke off after its first event; and how
each that got no event ended, by a word.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from time import monotonic

from aegis.processes import raise_file_limit

BODY = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": "hello " * 80}], "stream": True}
).encode()
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
SERVER = re.compile(rb'"id":"chatcmpl-(\d+)"')
STATUS = re.compile(rb"HTTP/1\.1 (\d+)")
DONE, END = b"data: [DONE]\n\n", b"0\r\n\r\n"
RAMP_SECONDS = 3.0  # over which the streams begin
PATIENCE = 30.0  # for what is open at the end, and for one answer


class Outcomes:
    """What became of all streams."""

    def __init__(self) -> None:
        self.whole = 0
        self.broken: Counter[int] = Counter()  # by the server
        self.unanswered: Counter[str] = Counter()  # by a word


class Stream(asyncio.Protocol):
    """One connection, which asks again and again."""

    def __init__(self, outcomes: Outcomes, until: float) -> None:
        self.outcomes, self.until = outcomes, until
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open = False
        self.server = 0
        self.status = b""
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.ask()

    def ask(self) -> None:
        if monotonic() > self.until:
            self.transport.close()
            return
        self.open, self.server, self.status, self.tail = True, 0, b"", b""
        self.transport.write(REQUEST % (len(BODY), BODY))

    def data_received(self, data: bytes) -> None:
        if not self.status and (status := STATUS.match(self.tail + data)):
            self.status = status[1]
        if not self.server and (server := SERVER.search(self.tail + data)):
            self.server = int(server[1])
        self.tail = (self.tail + data)[-512:]
        if self.tail.endswith(END) or (self.status and self.status != b"200"):
            self.close_books(whole=DONE in self.tail)

    def close_books(self, *, whole: bool) -> None:
        self.open = False
        if whole and self.server:
            self.outcomes.whole += 1
            self.ask()
            return
        if self.server:
            self.outcomes.broken[self.server] += 1
        else:
            self.outcomes.unanswered[f"HTTP {self.status.decode()}" if self.status else "closed"] += 1
        self.transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        if self.open:
            self.close_books(whole=False)
        self.ended.set_result(None)


async def keep_open(port: int, delay: float, until: float, outcomes: Outcomes) -> None:
    await asyncio.sleep(delay)
    while monotonic() < until:
        try:
            _, stream = await asyncio.get_running_loop().create_connection(
                lambda: Stream(outcomes, until), "127.0.0.1", port
            )
        except OSError:
            outcomes.unanswered["no connection"] += 1
            await asyncio.sleep(0.1)
            continue
        await stream.ended


async def main() -> None:
    raise_file_limit()
    port, count, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    outcomes = Outcomes()
    until = monotonic() + seconds
    tasks = [
        asyncio.create_task(keep_open(port, RAMP_SECONDS * number / count, until, outcomes))
        for number in range(count)
    ]
    _, open_still = await asyncio.wait(tasks, timeout=seconds + PATIENCE)
    outcomes.unanswered["no end"] += len(open_still)
    print(
        json.dumps({"whole": outcomes.whole, "broken": outcomes.broken, "unanswered": +outcomes.unanswered})
    )


if __name__ == "__main__":
    asyncio.run(main())
