"""The journal of a run: what makes the output exactly once, whatever is killed, at any byte.

A head, then one record per finished row, with a checksum. A record counts when it is whole. So what a crash tore is cut off when the journal is opened again, and its
row is done once more; nothing is ever found twice, for of a row's records the last one counts.
In memory is one bit a row; where records begin is needed only for the output, and noted on the disk.
"""

from __future__ import annotations

import os
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING, Final

import msgspec

from aegis.errors import AegisError, ConfigError
from aegis.files import write_atomically
from aegis.mapper.bits import Bits
from aegis.mapper.held import open_held, trouble, write_all
from aegis.mapper.offsets import BATCH, Offsets
from aegis.mapper.records import FORMAT, Head, Record, decode, decode_head, differences, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Self

BUFFER_BYTES: Final = 1 << 20


def journal_of(output: Path) -> Path:
    """Return where the journal of an output lies."""
    return output.with_name(f"{output.name}.journal")


class Journal:
    """The journal of one output, open for one run; other runs are kept out by a lock.

    `append` is for one thread, `commit` and `close` for any. Beside the output 8 bytes a row are used while it is open.

    Args:
        output: what the run writes in the end.
        rows: how many rows the input has.
        asked: names and values that tell this run from others.
        retry_failed: do the rows again that failed.
        batch: rows whose offset in the journal is in memory.

    Raises:
        ConfigError: the output belongs to a run that was asked for something else, or to none.
        SiteError: another run works on it now, or the file system refuses.
    """

    def __init__(
        self,
        output: Path,
        rows: int,
        asked: Mapping[str, str],
        *,
        retry_failed: bool = False,
        batch: int = BATCH,
    ) -> None:
        self.output, self.path = output, journal_of(output)
        self._head = Head(FORMAT, rows, dict(asked))
        self._done = Bits(rows)
        self._offsets = Offsets(output.parent, batch)
        self._pending: deque[tuple[int, bytes]] = deque()  # position and record
        self._end = self._committed = 0  # bytes of the file: with what waits, and without
        self._writing = Lock()
        self._broken: AegisError | None = None
        self.done = self.failed = self.damaged = 0
        if output.exists() and not self.path.exists():
            raise self._foreign()
        try:
            self._file = open_held(self.path, output)
        except OSError as error:
            raise self._error(error) from None
        try:
            self.finished = self._open(retry_failed=retry_failed)
        except OSError as error:
            self.close()
            raise self._error(error) from None
        except AegisError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, position: int) -> bool:
        # Rows beyond the last are nothing to do: who reads them finds at the end that the input grew.
        return self.finished or position >= self.rows or position in self._done

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return self._head.rows

    @property
    def left(self) -> int:
        """Rows that are not done."""
        return self.rows - self.done

    @property
    def backlog(self) -> int:
        """Bytes that wait for a commit."""
        return self._end - self._committed

    def append(self, position: int, line: bytes, *, failed: bool) -> None:
        """Take the line of a row; it is safe from the end of this process after the next commit."""
        if position in self:
            raise ValueError(f"row {position} is done already")
        record = encode(Record(position, failed, line))
        self._done.add(position)
        self._end += len(record)
        self._pending.append((position, record))
        self.done += 1
        self.failed += failed

    def commit(self, *, sync: bool) -> None:
        """Write what was appended; with `sync`, onto the disk.

        Raises:
            AegisError: it cannot be written. The journal is then closed to writing, and every whole record
                in it counts when the same command is run again.
        """
        with self._writing:
            if self._broken:
                raise self._broken
            batch = [self._pending.popleft() for _ in range(len(self._pending))]
            try:
                write_all(self._file, b"".join([record for _, record in batch]))
                for position, record in batch:
                    self._offsets.note(position, self._committed)
                    self._committed += len(record)
                if sync:
                    os.fsync(self._file)
            except OSError as error:
                self._broken = self._error(error)
                raise self._broken from None

    def assemble(self) -> None:
        """Write the output, in the order of the input, by a file beside it and a rename; forget what is not needed.

        The records stay where rows failed, for these may be tried again.

        Raises:
            AegisError: it cannot be written, or a record was damaged since; nothing is lost.
        """
        if self.finished:
            return
        if self.left:
            raise ValueError(f"{self.left} rows are not done")
        self.commit(sync=True)
        part = self.output.with_name(f".{self.output.name}.part")  # one name, so that no crash leaves several
        try:
            with part.open("wb", buffering=BUFFER_BYTES) as file:
                file.writelines(self._lines())
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.output)
            _sync_directory(self.output.parent)
            if not self.failed:
                write_atomically(self.path, msgspec.structs.replace(self._head, done=True).line())
                self.finished = True
        except OSError as error:
            raise self._error(error) from None
        finally:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file and its lock; what was not committed is forgotten."""
        with self._writing:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            self._offsets.close()

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb", buffering=BUFFER_BYTES) as file:
            for position, offset in zip(range(self.rows), self._offsets, strict=True):
                file.seek(offset)
                record = decode(file.readline())
                if record is None or record.position != position:
                    raise AegisError(
                        f"{self.path}: the record of row {position + 1} was damaged since it was written",
                        hint="run the same command again: that row is done once more",
                    )
                yield record.line
                yield b"\n"

    def _open(self, *, retry_failed: bool) -> bool:
        """Read what is there; return whether the run was finished before."""
        with open(self._file, "rb", buffering=BUFFER_BYTES, closefd=False) as file:
            first = file.readline()
            torn = not first.endswith(b"\n") and self._head.line().startswith(first)
            if torn and self.output.exists():
                raise self._foreign()
            if torn or self._abandoned(first, os.fstat(self._file).st_size):
                self._begin()
                return False
            self._check(first)
            if decode_head(first).done:
                self.done = self.rows
                return True
            self._scan(file, len(first), retry_failed=retry_failed)
        return False

    def _abandoned(self, first: bytes, size: int) -> bool:
        """Tell whether nothing is lost by a new beginning.

        The run was finished and its output taken away, so that it is meant to be done again; or no row was done.
        """
        try:
            return (decode_head(first).done or size == len(first)) and not self.output.exists()
        except ValueError:
            return False

    def _begin(self) -> None:
        """Start anew: the head is all there is."""
        head = self._head.line()
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        write_all(self._file, head)
        os.fsync(self._file)
        _sync_directory(self.path.parent)
        self._end = self._committed = len(head)

    def _check(self, first: bytes) -> None:
        try:
            head = decode_head(first)
        except ValueError:
            raise ConfigError(
                f"{self.path} is no journal of aegis map", hint="remove it, or write to another file"
            ) from None
        if differ := differences(head, self._head):
            raise ConfigError(
                f"{self.output} was begun with something else: " + "; ".join(differ),
                hint="continue with what it was begun with, or write to another file; "
                f"to start over, remove {self.path.name} and the output",
            )

    def _scan(self, file: Iterator[bytes], end: int, *, retry_failed: bool) -> None:
        """Note every whole record, and cut off what follows the last one."""
        offset, damaged, failed = end, 0, Bits(self.rows)
        for line in file:
            record = decode(line)
            if record is None or not 0 <= record.position < self.rows:
                damaged += 1  # a crash of the node may leave holes; their rows are done again
            else:
                self._offsets.note(record.position, offset)
                self._done.add(record.position)
                (failed.add if record.failed else failed.discard)(record.position)
                end, self.damaged = offset + len(line), damaged
            offset += len(line)
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        self._end = self._committed = end
        if retry_failed:
            self._done.remove(failed)
        else:
            self.failed = len(failed)
        self.done = len(self._done)

    def _foreign(self) -> ConfigError:
        return ConfigError(f"{self.output} is there already", hint="remove it, or write to another file")

    def _error(self, error: OSError) -> AegisError:
        return trouble(error, self.path, self.output.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
