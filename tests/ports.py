"""Ports for tests that must know one before its server does."""

from __future__ import annotations

import contextlib
import random
import socket

import pytest


def free_port(count: int = 1) -> int:
    """Return the first of so many free ports in a row, below those that connections take."""
    start = random.randrange(20_000, 30_000)
    for first in range(start, start + 2_000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    pytest.fail("no free port")
