"""One request on its way through the batch: its turn, its tokens as they fall due, and what is counted."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Self

from aegis.engines.simulator.pace import Work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aegis.engines.simulator.engine import Batch
    from aegis.engines.simulator.metrics import Stats
    from aegis.engines.simulator.pace import Pace
    from aegis.engines.simulator.protocol import Job

BREATH = 256  # tokens due at once after which others get their turn


class Generation:
    """A place in the batch, held from `with` to its end; without `finish` it counts as aborted."""

    def __init__(self, job: Job, batch: Batch, stats: Stats, pace: Pace) -> None:
        self._job = job
        self._batch = batch
        self._stats = stats
        self._pace = pace
        self.cached = 0  # tokens of the prompts that the prefix cache holds
        self._arrived = monotonic()
        self._finished = False
        self._lengths = [len(output.tokens) for output in job.outputs]
        self.longest = max(self._lengths, default=1)  # an embedding takes one step

    def __enter__(self) -> Self:
        self._ticket = self._batch.enter(self._job.kv_tokens)
        return self

    def __exit__(self, *_exc: object) -> None:
        for other in self._batch.leave(self._ticket):
            if other.wake:
                other.wake()
        if not self._finished:
            self._stats.finished["abort"] += 1

    def finish(self) -> None:
        """Count the request as served."""
        self._finished = True
        stats = self._stats
        stats.e2e.observe(monotonic() - self._arrived)
        stats.request_prompt.observe(self._job.prompt_tokens)
        if not self._job.outputs:
            stats.finished["stop"] += 1
        for output in self._job.outputs:
            stats.finished[output.finish_reason] += 1
            stats.request_generation.observe(len(output.tokens))

    async def tokens(self, slice_seconds: float) -> AsyncIterator[int]:
        """Yield how many further tokens (of every choice) are there, when they are, as `Pace.tokens` says."""
        if not self._ticket.running:
            await self._turn()
        last = monotonic()
        self._stats.queue.observe(last - self._arrived)
        made = 0
        rows = len(self._lengths) or len(self._job.prompts)
        work = Work(self._job.prompt_tokens, self.cached, self.longest, max(1, rows))
        async for ready in self._pace.tokens(work, slice_seconds):
            last = self._count(made, ready, last)
            made += ready
            yield ready

    async def positions(self) -> AsyncIterator[int]:
        """Yield the index of every token when it is due."""
        position = 0
        async for ready in self.tokens(0.0):
            for index in range(position, position + ready):
                yield index
                if index % BREATH == BREATH - 1:
                    await asyncio.sleep(0)
            position += ready

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not turn.done():
                turn.set_result(None)

        self._ticket.wake = wake
        await turn

    def _count(self, made: int, ready: int, last: float) -> float:
        """Count tokens that are there now; return the time."""
        now, stats = monotonic(), self._stats
        later = ready
        if not made:
            stats.prompt_tokens += self._job.prompt_tokens
            stats.ttft.observe(now - self._arrived)
            later -= 1
        if later:
            stats.itl.observe((now - last) / ready, later)
        for length in self._lengths:
            stats.generation_tokens += max(0, min(made + ready, length) - made)
        return now
