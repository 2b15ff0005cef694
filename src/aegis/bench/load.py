"""Loads on their way: requests are sent when they are due, and what comes back is noted."""

from __future__ import annotations

import time
from array import array
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct

from aegis.bench.connection import Connection, Stale, resolve
from aegis.bench.generator import Generator, Lateness
from aegis.bench.loop import Loop
from aegis.bench.records import COLUMNS, KIND, Records
from aegis.bench.wire import Failed, request, request_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.bench.wire import Answer
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
            max(0.0, times[0] - start),  # of an answer that came at once, between two looks at the sockets
            max(0.0, times[-1] - start),
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


class Request:
    """One request on its way."""

    __slots__ = ("connection", "data", "deadline", "number", "start")

    def __init__(self, number: int, data: bytes, seconds: float) -> None:
        self.number = number  # of its prompt
        self.data = data
        self.start = monotonic()
        self.deadline = self.start + seconds
        self.connection: Connection | None = None


class Sender:
    """Sends one work over as many connections as are needed at once."""

    def __init__(self, work: Work, api_key: str | None, loop: Loop, lateness: Lateness) -> None:
        self.left = len(work.prompts)  # not yet answered
        self._work = work
        self._head = request_head(work.target, PATHS[work.chat], api_key)
        self._addresses = resolve(work.target)
        self._loop = loop
        self._lateness = lateness
        self._indices = iter(range(len(work.prompts)))
        self._idle: list[Connection] = []
        self._open: dict[Request, None] = {}  # in the order of their deadlines
        self._expiring = False  # `_expire` will come
        self._rows = Rows()
        self._ended = 0.0

    def begin(self, when: float) -> None:
        """Send everything from a monotonic time on."""
        self._ended = when
        if self._work.arrivals:
            self._await_arrival(when)
        else:
            for _ in range(min(self._work.concurrency, self.left)):
                self._loop.at(when, self._send_next)

    def close(self) -> None:
        """Drop all connections."""
        for connection in (*self._idle, *(sent.connection for sent in self._open)):
            if connection:
                connection.close()

    def outcome(self) -> Outcome:
        """Return what became of it."""
        return Outcome(self._rows.records(), self._ended)

    def _await_arrival(self, when: float) -> None:
        index = next(self._indices, None)
        if index is None:
            return
        due = when + self._work.arrivals[index]

        def arrive() -> None:
            self._lateness.arrivals.append(self._send(index) - due)
            self._await_arrival(when)

        self._loop.at(due, arrive)

    def _send_next(self) -> None:
        index = next(self._indices, None)
        if index is not None:
            self._send(index)

    def _send(self, index: int) -> float:
        """Send one request; return when that was."""
        work = self._work
        data = request(self._head, work.body(index))
        sent = Request(work.first + index * work.stride, data, work.seconds)
        if not self._expiring:
            self._expiring = True
            self._loop.at(sent.deadline, self._expire)
        self._open[sent] = None
        self._ask(sent)
        return sent.start

    def _ask(self, sent: Request) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.free:
                break
        else:
            connection = Connection(self._loop, self._work.target.address, self._addresses)
        sent.connection = connection
        connection.ask(sent.data, partial(self._answered, sent))

    def _answered(self, sent: Request, answer: Answer | Failed) -> None:
        if isinstance(answer, Stale):
            self._ask(sent)
            return
        del self._open[sent]
        self.left -= 1
        self._ended = monotonic()
        if isinstance(answer, Failed):
            self._rows.fail(sent.number, sent.start, str(answer))
        else:
            self._rows.add(sent.number, sent.start, answer)
        if sent.connection and sent.connection.free:
            self._idle.append(sent.connection)
        if not self._work.arrivals:  # failures may come without end: no deeper into the stack
            self._loop.at(self._ended, self._send_next)

    def _expire(self) -> None:
        """Give up what took too long; come back when the next one may have."""
        now = monotonic()
        while self._open and (oldest := next(iter(self._open))).deadline <= now:
            if oldest.connection:
                oldest.connection.close()
            self._answered(oldest, Failed(f"no whole answer within {self._work.seconds:g} s"))
        self._expiring = bool(self._open)
        if self._open:
            self._loop.at(next(iter(self._open)).deadline, self._expire)


class Load:
    """Works that are sent at the same time, ready to begin: names are resolved."""

    def __init__(self, works: Sequence[Work], api_key: str | None = None) -> None:
        self._loop = Loop()
        self._lateness = Lateness()
        self._senders = [Sender(work, api_key, self._loop, self._lateness) for work in works]
        self._busy = list(self._senders)

    def run(self, begin: float | None = None) -> tuple[list[Outcome], Generator]:
        """Send everything and wait for all answers.

        Args:
            begin: monotonic time of the first request; None is now.

        Returns:
            An outcome for each work, and how well the generator kept up.
        """
        begin = monotonic() if begin is None else begin
        time.sleep(max(0.0, begin - monotonic()))
        used = time.process_time()
        self._lateness.watch(self._loop)
        try:
            for sender in self._senders:
                sender.begin(begin)
            self._loop.run(self._going)
        finally:
            for sender in self._senders:
                sender.close()
            self._loop.close()
        took = max(monotonic() - begin, 1e-9)
        generator = self._lateness.summary(cpu=(time.process_time() - used) / took)
        return [sender.outcome() for sender in self._senders], generator

    def _going(self) -> bool:
        while self._busy and not self._busy[-1].left:
            self._busy.pop()
        return bool(self._busy)
