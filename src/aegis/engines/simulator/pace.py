"""When the tokens of a request are there: each request by a clock of its own, or all in step."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aegis.engines.simulator.engine import Batch, constant, jittered
from aegis.engines.simulator.steps import Group, Sequence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aegis.engines.simulator import Settings
    from aegis.engines.simulator.engine import StepTime
    from aegis.engines.simulator.faults import Faults
    from aegis.spec.step_times import StepTimes


class Work(NamedTuple):
    """What a request asks of the model."""

    prompt: int  # tokens
    cached: int  # of them
    output: int  # tokens of each answer
    rows: int  # answers


class Pace(Protocol):
    """Tells when tokens are there."""

    def tokens(self, work: Work, slice_seconds: float) -> AsyncIterator[int]:
        """Yield how many further tokens (of every answer) are there, when they are.

        The first token comes by itself; later ones together where they fall due within `slice_seconds`.
        """
        ...


class OwnClock:
    """A time to the first token and a time between tokens for each request, whatever else runs."""

    def __init__(self, step_time: StepTime, batch: Batch, faults: Faults) -> None:
        self._step_time = step_time
        self._batch = batch
        self._faults = faults

    async def tokens(self, work: Work, slice_seconds: float) -> AsyncIterator[int]:
        """As `Pace` says."""
        due = monotonic() + self._step_time(work.prompt, self._batch.running).ttft
        made = 0
        while made < work.output:
            ready, horizon, wake = 0, monotonic() + (slice_seconds if made else 0.0), due
            while made + ready < work.output and (due <= horizon or not ready):
                ready, wake = ready + 1, due
                due += self._step_time(work.prompt, self._batch.running).itl
            if (delay := wake - monotonic()) > 0:
                await asyncio.sleep(delay)
            if self._faults.hanging:
                await self._faults.until_tokens_flow()
                due = max(due, monotonic())
            made += ready
            yield ready


class InStep:
    """All requests advance together, step by step, as an engine's do; each group has steps of its own."""

    def __init__(self, times: StepTimes, faults: Faults, *, scale: float, jitter: float, seed: int) -> None:
        self._groups = [Group(times) for _ in range(times.groups)]
        self._tasks: dict[Group, asyncio.Task[None]] = {}
        self._faults = faults
        self._scale = scale
        self._jitter = jitter
        self._rng = Random(seed)  # noqa: S311 - a rehearsal must be repeatable

    async def tokens(self, work: Work, slice_seconds: float) -> AsyncIterator[int]:
        """As `Pace` says."""
        sequence = Sequence(prompt=work.prompt, cached=work.cached, output=work.output, rows=work.rows)
        news = asyncio.Event()
        sequence.wake = news.set
        sequence.each_token = not slice_seconds
        group = min(self._groups, key=lambda each: each.requests)
        group.add(sequence)
        if group not in self._tasks:
            self._tasks[group] = asyncio.ensure_future(self._run(group))
        told = 0
        try:
            while told < work.output:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(slice_seconds if told and slice_seconds else None):
                        await news.wait()
                news.clear()
                if ready := sequence.made - told:
                    told = sequence.made
                    yield ready
        finally:
            group.remove(sequence)

    async def _run(self, group: Group) -> None:
        """Take steps until there is nothing to do. Times are absolute, so that delays do not add up."""
        due = monotonic()
        while (step := group.step()) is not None:
            spread = 1 + self._jitter * (2 * self._rng.random() - 1)
            due += step.seconds * self._scale * spread
            await asyncio.sleep(max(0.0, due - monotonic()))
            if self._faults.hanging:
                await self._faults.until_tokens_flow()
                due = monotonic()
            group.finish(step)
            # The answers go out, and who is answered may ask again, before the next step is put together.
            await asyncio.sleep(0)
        del self._tasks[group]


def pace_of(settings: Settings, batch: Batch, faults: Faults, step_time: StepTime | None = None) -> Pace:
    """Return the pace that the settings ask for; `step_time` replaces the constant one."""
    scale, jitter = settings.time_scale, settings.jitter
    if settings.step_times is not None:
        return InStep(settings.step_times, faults, scale=scale, jitter=jitter, seed=settings.seed)
    step_time = step_time or constant(settings.ttft * scale, settings.itl * scale)
    if jitter:
        step_time = jittered(step_time, jitter, Random(settings.seed))  # noqa: S311 - as above
    return OwnClock(step_time, batch, faults)
