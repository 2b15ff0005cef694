"""Servers of asyncio that tests end while somebody connects."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

TURNS = 3  # of a loop, until what was taken in is known and what is closed is gone


async def turn() -> None:
    """Let the loop do what is due."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def let_nobody_in(listeners: Iterable[int]) -> None:
    """Take in who came, and nobody else: `asyncio.Server.close` leaves a connection open that is half taken in (gh-109564)."""
    for each in listeners:
        asyncio.get_running_loop().remove_reader(each)
    await turn()
