"""Ask many at once, and wait for nobody beyond a deadline."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
R = TypeVar("R")


def concurrently(
    ask: Callable[[T], R], items: Sequence[T], *, threads: int, deadline: float
) -> list[R | None]:
    """Return the answer for each item; None where there was none in time. Each call needs a time-out of its own.

    Args:
        ask: returns an answer; what it raises is raised here.
        items: what to ask for.
        threads: how many at once.
        deadline: seconds for all together.
    """
    if not items:
        return []
    pool = ThreadPoolExecutor(min(threads, len(items)))
    futures = [pool.submit(ask, item) for item in items]
    done, _ = wait(futures, deadline)
    pool.shutdown(wait=False, cancel_futures=True)
    return [future.result() if future in done else None for future in futures]
