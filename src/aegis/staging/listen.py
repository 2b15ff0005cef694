"""What the programs that stage print, as it comes; and how far they are again and again, so that a listener can end it."""

from __future__ import annotations

import os
import select
from typing import IO, TYPE_CHECKING, Final

from aegis.staging.events import Progress, read_event

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.staging.events import Event
    from aegis.staging.listing import Item

SILENCE_SECONDS: Final = 1.0  # until it is told again how far it is


def events(stream: IO[bytes] | None, so_far: Event) -> Iterator[Event]:
    """Yield what a program tells; how far it is again and again, so that whoever listens in silence can end it."""
    for line in spoken(stream):
        event = read_event(line) if line else so_far
        if isinstance(event, Progress):
            so_far = event
        if event is not None:
            yield event


def spoken(stream: IO[bytes] | None) -> Iterator[bytes]:
    """Yield the lines that a program prints; an empty one for each second in which it prints none."""
    if stream is None:
        return
    waiting, rest = select.poll(), b""
    waiting.register(stream, select.POLLIN)
    while True:
        if not waiting.poll(SILENCE_SECONDS * 1000):
            yield b""
        elif data := os.read(stream.fileno(), 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            yield from filter(None, lines)
        else:
            break
    if rest:
        yield rest


def at_first(items: Sequence[Item], hosts: Sequence[str]) -> Progress:
    """Return how far it is before anything was heard."""
    size, nodes = (items[0].size, len(items[0].hosts or hosts)) if items else (0, 0)
    return Progress(item=0, bytes=0, total=size, nodes_done=0, nodes=nodes, seconds=0.0)
