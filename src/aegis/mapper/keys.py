"""Which keys of an input occur twice, found in bounded memory.

Keys are known by their hashes, 8 bytes each. Up to one run of them is in memory; more are sorted run by run into a file without a
name, and looked at by ranges of the hash, each range over all runs at once.
"""

from __future__ import annotations

from array import array
from itertools import pairwise
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final, Self

from aegis.mapper.held import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

RUN: Final = 1 << 18  # hashes in memory: 2 MB
RANGE_BITS: Final = 8  # of a hash: 256 ranges, each of which is in memory at once
SIZE: Final = 8  # bytes of a hash


class Keys:
    """The keys of an input; to be used with `with`.

    Args:
        directory: where the file is made, when there is need.
        run: hashes in memory before they are written.
    """

    def __init__(self, directory: Path, run: int = RUN) -> None:
        self._directory, self._run = directory, run
        self._hashes = array("q")
        self._cuts: list[array[int]] = []  # of each run: where ranges begin and end in the file, in hashes
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def add(self, key: str) -> None:
        """Take a key; OSError where the file system refuses."""
        self._hashes.append(hash(key))
        if len(self._hashes) >= self._run:
            self._spill()

    def twice(self) -> Iterator[int]:
        """Yield the hashes that occur more than once, ascending, when all keys were taken; or raise OSError."""
        import numpy as np  # noqa: PLC0415 - light commands load this module

        if self._file is None:
            yield from _repeated(np.frombuffer(self._hashes, np.int64))
            return
        self._spill()
        with open(self._file.fileno(), "rb", closefd=False) as file:
            for ends in zip(*map(pairwise, self._cuts), strict=True):
                blocks = []
                for begin, end in ends:
                    file.seek(begin * SIZE)
                    blocks.append(file.read((end - begin) * SIZE))
                yield from _repeated(np.frombuffer(b"".join(blocks), np.int64))

    def _spill(self) -> None:
        import numpy as np  # noqa: PLC0415 - light commands load this module

        if self._file is None:
            self._file = TemporaryFile(buffering=0, dir=self._directory)  # noqa: SIM115 - with `with`
        run = np.sort(np.frombuffer(self._hashes, np.int64))
        # Two of each tell enough; else one key in all rows would make one range of all rows.
        run = np.concatenate([run[:2], run[2:][run[2:] != run[:-2]]])
        half = 1 << RANGE_BITS - 1
        begins = np.arange(-half, half) << 64 - RANGE_BITS
        before = self._cuts[-1][-1] if self._cuts else 0
        self._cuts.append(array("q", [before + int(at) for at in (*np.searchsorted(run, begins), len(run))]))
        write_all(self._file.fileno(), run.tobytes())
        self._hashes = array("q")


def _repeated(hashes: NDArray[np.int64]) -> list[int]:
    import numpy as np  # noqa: PLC0415 - light commands load this module

    ordered = np.sort(hashes)
    found: list[int] = np.unique(ordered[1:][ordered[1:] == ordered[:-1]]).tolist()
    return found
