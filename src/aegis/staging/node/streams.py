"""A stream as it comes by a node, and the threads that write what it brings."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .frames import Frame
    from .link import Link
    from .store import Store


class Stream:
    """One round of one item, as it comes by."""

    def __init__(self, store: Store, link: Link) -> None:
        self.store = store
        self.link = link
        self._lock = threading.Lock()
        self._pending = 0
        self._ended = False
        self._over = False

    def begin(self) -> None:
        """Note that a frame is to be written."""
        with self._lock:
            self._pending += 1

    def finish(self) -> bool:
        """Note that it was; True when it was the last of all."""
        with self._lock:
            self._pending -= 1
            return self._last()

    def end(self) -> bool:
        """Note the end of the stream; True when nothing is left to be written."""
        with self._lock:
            self._ended = True
            return self._last()

    def _last(self) -> bool:
        first = self._ended and not self._pending and not self._over
        self._over = self._over or first
        return first


class Writer(threading.Thread):
    """Hashes and writes frames."""

    def __init__(
        self, failed: Callable[[Stream, OSError], None], written: Callable[[Stream, Frame], None]
    ) -> None:
        super().__init__(daemon=True, name="write")
        self.jobs: queue.SimpleQueue[tuple[Stream, Frame]] = queue.SimpleQueue()
        self._failed, self._written = failed, written
        self._since = 0.0

    @property
    def seconds(self) -> float:
        """How long the write that goes on has taken."""
        since = self._since
        return time.monotonic() - since if since else 0.0

    def run(self) -> None:
        while True:
            stream, frame = self.jobs.get()
            self._since = time.monotonic()
            try:
                if not stream.store.error:
                    stream.store.write(frame.pieces, frame.data)
            except OSError as error:
                self._failed(stream, error)
            self._since = 0.0
            self._written(stream, frame)
