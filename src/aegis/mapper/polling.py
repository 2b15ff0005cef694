"""Instances asked how many requests run and wait: those that have rows of ours, one after the other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import aiohttp

from aegis.mapper.load import read_load

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.mapper.balance import Balance, Lane

POLL: Final = 2.0  # seconds between two looks at an instance's queue
POLLS_A_SECOND: Final = 50  # of all instances together
POLL_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
NOT_FOUND: Final = 404


async def poll_loads(session: aiohttp.ClientSession, balance: Balance, changed: Callable[[], None]) -> None:
    """Tell each instance's queue to its lane, until this is cancelled."""
    asked: set[asyncio.Task[None]] = set()
    gap = 1 / POLLS_A_SECOND
    while True:
        lanes = [lane for lane in balance.lanes if lane.outstanding and not lane.silent]
        for lane in lanes:
            task = asyncio.create_task(_ask(session, lane, changed))
            asked.add(task)
            task.add_done_callback(asked.discard)
            await asyncio.sleep(gap)
        await asyncio.sleep(max(gap, POLL - gap * len(lanes)))


async def _ask(session: aiohttp.ClientSession, lane: Lane, changed: Callable[[], None]) -> None:
    try:
        async with session.get(lane.url + "/metrics", timeout=POLL_TIMEOUT) as response:
            load = read_load(await response.read())
            lane.silent = response.status == NOT_FOUND
    except (aiohttp.ClientError, OSError):  # a timeout too; who does not answer rows is told by the rows
        return
    if load:
        lane.report(load.running, load.waiting)
        changed()
