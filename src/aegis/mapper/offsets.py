"""Where each row's record begins in its journal, on the disk: 8 bytes a row, which are not for the memory.

The file has no name, so nothing of it stays behind. It is written and read by calls, not mapped: a full disk is then an error
that can be told, and no signal.
"""

from __future__ import annotations

import os
from array import array
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final

from aegis.mapper.held import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

BATCH: Final = 1 << 16  # notes in memory: 1 MB
SIZE: Final = 8  # bytes of an offset


class Offsets:
    """Offsets in bytes, noted in any order of the rows and given back in the order of the rows.

    Args:
        directory: where the file is made, when there is need.
        batch: notes in memory before they are written.
    """

    def __init__(self, directory: Path, batch: int = BATCH) -> None:
        self._directory, self._batch = directory, batch
        self._file: FileIO | None = None
        self._positions, self._offsets = array("q"), array("q")

    def note(self, position: int, offset: int) -> None:
        """Keep a row's offset, which replaces an earlier one.

        Raises:
            OSError: the file system refuses.
        """
        self._positions.append(position)
        self._offsets.append(offset)
        if len(self._positions) >= self._batch:
            self._spill()

    def __iter__(self) -> Iterator[int]:
        """Yield the offset of every row up to the last that was noted, 0 for what was not; or raise OSError."""
        with open(self._spill(), "rb", closefd=False) as file:
            file.seek(0)
            while block := file.read(self._batch * SIZE):
                yield from array("q", block)

    def close(self) -> None:
        """Let go of the file."""
        if self._file:
            self._file.close()

    def _spill(self) -> int:
        """Write what is in memory; return the descriptor of the file."""
        import numpy as np  # noqa: PLC0415 - light commands load this module

        if self._file is None:
            self._file = TemporaryFile(buffering=0, dir=self._directory)  # noqa: SIM115 - close()
        file = self._file.fileno()
        positions = np.frombuffer(self._positions, np.int64)
        order = np.argsort(positions, kind="stable")  # of a row's offsets the last one is written last
        positions, offsets = positions[order], np.frombuffer(self._offsets, np.int64)[order]
        # Rows come nearly in order, so that few writes are enough: one for each stretch of neighbours.
        for stretch in np.split(np.arange(len(order)), np.flatnonzero(np.diff(positions) != 1) + 1):
            if len(stretch):
                os.lseek(file, int(positions[stretch[0]]) * SIZE, os.SEEK_SET)
                write_all(file, offsets[stretch].tobytes())
        self._positions, self._offsets = array("q"), array("q")
        return file
