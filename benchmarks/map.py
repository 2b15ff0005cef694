"""What `aegis map` itself costs: CPU per prompt row, and memory as rows become many.

Rows: 64 at once, against one server of the standard library in a process of its own that answers at once with 100
words. Counted is the CPU time of the whole driving process, threads too, between the first row and the last: reading,
choosing, sending, judging, journal. Beside it a bare aiohttp loop that reads the same answers and does nothing.

Memory: the same input of N rows surveyed, read and journalled, and its output assembled, without a network, each
size in a process of its own.

    python benchmarks/map.py --rows 20000 --sizes 100000,1000000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.api.http import open_session
from aegis.api.targets import Target
from aegis.mapper.answers import judge
from aegis.mapper.balance import Limits
from aegis.mapper.dispatch import Dispatcher, Settings
from aegis.mapper.rows import Row, Source, read
from aegis.mapper.run import Run
from aegis.mapper.template import Template

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

CONCURRENCY = 64
WORDS = "simulated words " * 50
ANSWER = {
    "id": "chatcmpl-0123456789abcdef",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": WORDS}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 60, "total_tokens": 160, "completion_tokens": 100},
}
BODY = json.dumps(ANSWER).encode()
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
PROMPT = "Summarise: {text}"
TEXT = "the quick brown fox " * 10
END = b"\r\n\r\n"


class Answers(asyncio.Protocol):
    """One connection: a reply per request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._rest = transport, b""

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (end := self._rest.find(END)) >= 0:
            head = self._rest[:end].lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            if len(self._rest) < end + len(END) + length:
                return
            self._rest = self._rest[end + len(END) + length :]
            self._transport.write(REPLY)


def serve(told: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class Fixed:
    """A fleet of one."""

    def __init__(self, target: Target) -> None:
        self._targets = (target,)

    def now(self) -> tuple[int, tuple[Target, ...]]:
        return 0, self._targets


def write_rows(path: Path, rows: int) -> Source:
    with path.open("w") as file:
        file.writelines(json.dumps({"text": f"{number} {TEXT}"}) + "\n" for number in range(rows))
    return Source((str(path),), Template(PROMPT, "chat", {"model": "m", "max_tokens": 100}))


def per_row(began: tuple[float, float], rows: int) -> str:
    cpu, wall = time.process_time() - began[0], time.perf_counter() - began[1]
    return f"{cpu / rows * 1e6:7.1f} us CPU a row   {rows / wall:8,.0f} rows/s"


def now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


async def drive(run: Run, target: Target) -> None:
    async with open_session() as session:
        settings = Settings(limits=Limits(fixed=CONCURRENCY))
        await run.work(Dispatcher(session, Fixed(target), run.journal, settings))


async def bare(target: Target, rows: int) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": TEXT}]}).encode()
    left = iter(range(rows))
    async with open_session() as session:

        async def ask() -> None:
            for _ in left:
                async with session.post(target.base_url + "/v1/chat/completions", data=body) as response:
                    await response.read()

        await asyncio.gather(*[ask() for _ in range(CONCURRENCY)])


def time_rows(directory: Path, target: Target, rows: int) -> None:
    began = now()
    asyncio.run(bare(target, rows))
    print(f"aiohttp alone   {per_row(began, rows)}")
    source = write_rows(directory / "in.jsonl", rows)
    began = now()
    with Run(source, directory / "out.jsonl") as run:
        print(f"survey          {per_row(began, rows)}")
        began = now()
        asyncio.run(drive(run, target))
        print(f"rows            {per_row(began, rows)}")
        began = now()
        outcome = run.finish()
        print(f"output          {per_row(began, rows)}")
    assert (outcome.done, outcome.failed) == (rows, 0)


def memory(name: str) -> int:
    """Return a figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def finish_rows(rows: int) -> None:
    """Do all but send."""
    with tempfile.TemporaryDirectory() as directory:
        source = write_rows(Path(directory) / "in.jsonl", rows)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = memory("VmRSS")
        with Run(source, Path(directory) / "out.jsonl") as run:
            for row in read(source, run.survey.digest, run.journal.__contains__):
                keep(run, row)
            run.finish()
        size = Path(directory, "out.jsonl").stat().st_size
    grown = memory("VmHWM") - before
    print(
        f"{rows:10,} rows, output of {size / 1e6:6,.0f} MB: {grown / 1e6:6.1f} MB more, {grown / rows:5.1f} B a row"
    )


def keep(run: Run, row: Row) -> None:
    answer = judge(row, 200, b'{"id":"x","choices":[]}')
    assert not hasattr(answer, "word")
    run.journal.append(row.position, answer.line, failed=False)
    if run.journal.backlog > 1 << 20:
        run.journal.commit(sync=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--sizes", default="100000,1000000", help="numbers of rows for the memory")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,))
    server.start()
    try:
        with tempfile.TemporaryDirectory() as directory:
            time_rows(Path(directory), Target("127.0.0.1", mine.recv(), ("m",)), arguments.rows)
    finally:
        server.kill()
        server.join()
    for size in arguments.sizes.split(","):
        process = context.Process(target=finish_rows, args=(int(size),))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
