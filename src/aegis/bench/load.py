"""Loads on their way: one event loop that sends requests when they are due and notes what comes back."""

from __future__ import annotations

import asyncio
import time
from array import array
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct

from aegis.bench.generator import Generator, Lateness
from aegis.bench.records import COLUMNS, KIND, Records
from aegis.bench.wire import Answer, Connection, Failed, Stale, connect, request, request_head

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.bench.work import Work

PATHS: Final = {True: "/v1/chat/completions", False: "/v1/completions"}
NAN: Final = float("nan")


class Outcome(Struct, frozen=True):
    """What became of one work: its requests, and the monotonic time of its last answer."""

    records: Records
    ended: float


class Rows:
    """Records while they grow: one array a column."""

    def __init__(self) -> None:
        self.columns: dict[str, array[Any]] = {name: array(KIND[name].char) for name in COLUMNS}
        self.errors: list[str] = []

    def add(self, prompt: int, start: float, answer: Answer) -> None:
        """Note a request that succeeded."""
        times = answer.times
        usage = answer.usage
        written = usage.completion_tokens if usage else len(times)
        self._row(
            prompt,
            start,
            times[0] - start,
            times[-1] - start,
            usage.prompt_tokens if usage else 0,
            written or 0,
        )
        self.columns["gaps"].append(len(times) - 1)
        if len(times) > 1:
            self.columns["itl"].frombytes(np.diff(np.frombuffer(times)).tobytes())
        self.errors.append("")

    def fail(self, prompt: int, start: float, error: str) -> None:
        """Note a request that failed."""
        self._row(prompt, start, NAN, NAN, 0, 0)
        self.columns["gaps"].append(0)
        self.errors.append(error)

    def _row(self, *values: float) -> None:
        for column, value in zip(ROW, values, strict=True):
            self.columns[column].append(value)

    def records(self) -> Records:
        """Return all of them."""
        columns: dict[str, Any] = {
            name: np.frombuffer(column, KIND[name]) for name, column in self.columns.items()
        }
        return Records(**columns, errors=tuple(self.errors))


ROW: Final = ("prompt", "start", "ttft", "latency", "input_tokens", "output_tokens")


class Sender:
    """Sends one work over as many connections as are needed at once."""

    def __init__(self, work: Work, api_key: str | None, lateness: Lateness) -> None:
        self._work = work
        self._head = request_head(work.target, PATHS[work.chat], api_key)
        self._idle: list[Connection] = []
        self._rows = Rows()
        self._lateness = lateness
        self._ended = monotonic()

    async def run(self, begin: float) -> Outcome:
        """Send everything from a monotonic time on; return when all is answered."""
        work = self._work
        await asyncio.sleep(begin - monotonic())
        try:
            async with asyncio.TaskGroup() as tasks:
                if work.arrivals:
                    await self._arrive(tasks, begin)
                else:
                    left = iter(range(len(work.prompts)))
                    for _ in range(min(work.concurrency, len(work.prompts))):
                        tasks.create_task(self._one_by_one(left))
        finally:
            for connection in self._idle:
                connection.close()
        return Outcome(self._rows.records(), self._ended)

    async def _arrive(self, tasks: asyncio.TaskGroup, begin: float) -> None:
        for index, due in enumerate(self._work.arrivals):
            wait = begin + due - monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.create_task(self._one(index, begin + due))

    async def _one_by_one(self, left: Iterator[int]) -> None:
        for index in left:
            await self._one(index)

    async def _one(self, index: int, due: float | None = None) -> None:
        """Send one request and note what became of it."""
        start = monotonic()
        if due is not None:
            self._lateness.arrivals.append(start - due)
        number = self._work.first + index * self._work.stride
        try:
            async with asyncio.timeout(self._work.seconds):
                answer = await self._ask(request(self._head, self._work.body(index)))
        except TimeoutError:
            self._rows.fail(number, start, f"no whole answer within {self._work.seconds:g} s")
        except Failed as error:
            self._rows.fail(number, start, str(error))
        else:
            self._rows.add(number, start, answer)
        self._ended = monotonic()

    async def _ask(self, data: bytes) -> Answer:
        while self._idle:
            connection = self._idle.pop()
            if not connection.free:
                continue
            try:
                answer = await connection.ask(data)
            except Stale:
                continue
            self._idle.append(connection)
            return answer
        connection = await connect(self._work.target)
        answer = await connection.ask(data)
        self._idle.append(connection)
        return answer


async def run(
    works: Sequence[Work], begin: float | None = None, api_key: str | None = None
) -> tuple[list[Outcome], Generator]:
    """Send works at the same time in this event loop.

    Args:
        works: what is sent.
        begin: monotonic time of the first request; None is now.
        api_key: what every request presents.

    Returns:
        An outcome for each work, and how well the generator kept up.
    """
    begin = monotonic() if begin is None else begin
    await asyncio.sleep(begin - monotonic())
    lateness = Lateness()
    used = time.process_time()
    async with lateness.watched():
        outcomes = await asyncio.gather(*(Sender(work, api_key, lateness).run(begin) for work in works))
    took = max(monotonic() - begin, 1e-9)
    return outcomes, lateness.summary(cpu=(time.process_time() - used) / took)
