"""The journal: a file of JSON lines from which a restarted registry knows its services at once.

Serving never waits for the journal and never fails with it: a thread writes, because file systems of
clusters hang, and the first error is logged. What a crash loses, agents announce again within seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from queue import Full, Queue
from typing import TYPE_CHECKING, Final

import msgspec

from aegis.files import PRIVATE, write_atomically
from aegis.registry.model import Change

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

BACKLOG: Final = 10_000  # batches that wait for a hung file system before they are dropped
CLOSE_SECONDS: Final = 5.0  # how long the end of the registry waits for the last lines

log = logging.getLogger(__name__)
_decoder = msgspec.json.Decoder(Change)
_encoder = msgspec.json.Encoder()


def replay(path: Path) -> list[Change]:
    """Return the last change of every service that was not removed; lines that are torn are skipped.

    A journal that cannot be read is logged and counts as empty.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("the journal cannot be read, starting without: %s", error)
        return []
    known: dict[str, Change] = {}
    torn = 0
    for line in filter(None, lines):
        try:
            change = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            torn += 1
            continue
        known.pop(change.service.service_id, None)
        if not change.removed:
            known[change.service.service_id] = change
    if torn:
        log.warning("the journal %s has %d unreadable lines: skipped", path, torn)
    return list(known.values())


def compact(path: Path, changes: Iterable[Change]) -> None:
    """Replace the journal by these changes, whole or not at all; an error is logged."""
    try:
        write_atomically(path, _encoder.encode_lines(changes).decode(), PRIVATE)
    except OSError as error:
        log.warning("the journal cannot be compacted: %s", error)


class Journal:
    """Appends changes to a file from a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: Queue[Sequence[Change] | None] = Queue(BACKLOG)
        self._complained = False
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._thread.start()

    def append(self, changes: Sequence[Change]) -> None:
        """Write these changes soon; returns at once and raises nothing."""
        if not changes:
            return
        try:
            self._queue.put_nowait(changes)
        except Full:
            self._complain("its file system hangs")

    def close(self) -> None:
        """Write what is left, within a few seconds."""
        with contextlib.suppress(Full):
            self._queue.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)

    def _write_all(self) -> None:
        descriptor = -1
        torn = True  # the last line may be unfinished: begin on a new one
        while (changes := self._queue.get()) is not None:
            lines = _encoder.encode_lines(changes)
            try:
                if descriptor < 0:
                    descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE)
                    os.fchmod(descriptor, PRIVATE)
                if torn:
                    lines = b"\n" + lines
                torn = os.write(descriptor, lines) != len(lines)
            except OSError as error:
                torn = True
                self._complain(str(error))
            else:
                if torn:
                    self._complain("the disk is full")
        if descriptor >= 0:
            os.close(descriptor)

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            log.error("the journal %s cannot be written, serving goes on without: %s", self._path, reason)
