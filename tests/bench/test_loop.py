"""The loop of the load generator: when it says that a socket became ready."""

from __future__ import annotations

import socket
import time
from time import monotonic

from aegis.bench.loop import PAUSE, READABLE, Loop


def test_no_event_is_told_to_be_earlier_than_half_a_pause_before_it_came() -> None:
    """Where something held the loop up, the middle between two looks is long before what it finds."""
    loop, (ours, theirs) = Loop(), socket.socketpair()
    sent: list[float] = []
    told: list[float] = []

    def hold_up() -> None:
        time.sleep(20 * PAUSE)
        sent.append(monotonic())
        theirs.send(b"x")

    loop.at(monotonic(), hold_up)
    loop.at(monotonic() + 10, lambda: None)  # a loop has a timer
    with ours, theirs:
        loop.watch(ours.fileno(), READABLE, lambda _: told.append(loop.ready_at))
        loop.run(lambda: not told)
    loop.close()
    assert sent[0] - PAUSE / 2 <= told[0] <= monotonic()
