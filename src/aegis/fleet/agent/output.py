"""What an engine prints: its last lines, and all of it in its log."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from typing import IO, Any

TAIL_LINES = 200
TAIL_WIDTH = 2000  # characters of a line that are kept for diagnosis and for the registry
LOG_LINE_LIMIT = 64 * 1024  # bytes; longer lines are cut, so that a progress bar cannot fill the memory


class Output:
    """Reads an engine's output: keeps the last lines, and writes all of it to the log while the disk takes it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self.error = ""
        self._file: IO[bytes] | None = None  # open while it can be written
        self._lock = threading.Lock()  # the reader of an earlier start may still have a word to say

    def note(self, line: str) -> None:
        """Add a line of our own."""
        self._write(("[aegis {}] {}\n".format(time.strftime("%Y-%m-%dT%H:%M:%S"), line)).encode())

    def follow(self, stream: Any) -> threading.Thread:
        """Read the stream to its end in a thread of its own."""
        thread = threading.Thread(target=self._pump, args=(stream,), daemon=True)
        thread.start()
        return thread

    def _pump(self, stream: Any) -> None:
        while True:
            line = stream.readline(LOG_LINE_LIMIT)
            if not line:
                return
            self.tail.append(line[: 4 * TAIL_WIDTH].decode(errors="replace").rstrip()[:TAIL_WIDTH])
            self._write(line)

    def close(self) -> None:
        """Close the log; a further line opens it again."""
        with self._lock:
            self._close()

    def _write(self, data: bytes) -> None:
        with self._lock:
            try:
                if self._file is None:
                    self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - stays open from line to line
                self._file.write(data)
                self.error = ""
            except OSError as error:
                self.error = f"log not written: {error.strerror}"
                self._close()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
