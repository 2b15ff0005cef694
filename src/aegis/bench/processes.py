"""Loads over several processes of this machine, when the event loop of one is not enough.

Each process is told its works on standard input, says `ready` when it has read them, is told when to begin (the
monotonic clock is the same for all), and writes what it measured to standard output. A closed standard input ends it:
so no process outlives the one that started it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from aegis.api.http import KEY_VARIABLE
from aegis.bench.generator import Generator, worst
from aegis.bench.load import Load, Outcome
from aegis.bench.records import joined, packed, unpacked
from aegis.bench.work import Work, split
from aegis.errors import AegisError
from aegis.processes import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

START_SECONDS: Final = 0.1  # from the word that all are ready to the first request
LENGTH: Final = 8  # bytes before a message
REQUEST_SECONDS: Final = 150e-6  # CPU of one request: rather too much than too little
EVENT_SECONDS: Final = 20e-6  # and of one event that comes alone
COMFORTABLE: Final = 0.5  # share of a core that a process should be busy at most


class Part(Struct, frozen=True):
    """What one process measured of one work."""

    columns: dict[str, Any]
    ended: float


class Report(Struct, frozen=True):
    """What one process measured."""

    parts: tuple[Part, ...]
    generator: Generator


_report = msgspec.msgpack.Decoder(Report)  # made before threads: see `aegis.decoding`


class Measured(Struct, frozen=True):
    """A load that ended: an outcome for each work, in order; when it began; and how the generator kept up."""

    outcomes: tuple[Outcome, ...]
    began: float
    generator: Generator


def processes_for(works: Sequence[Work], cores: int) -> int:
    """Return how many processes an open loop needs, at most one a core; a closed loop shows it by its own lateness."""
    busy = 0.0
    for work in works:
        last = work.arrivals[-1] if work.arrivals else 0.0
        if last:
            events = sum(prompt.output_tokens for prompt in work.prompts)
            busy += (len(work.prompts) * REQUEST_SECONDS + events * EVENT_SECONDS) / last
    return max(1, min(cores, round(busy / COMFORTABLE)))


def run_load(works: Sequence[Work], *, processes: int = 1, api_key: str | None = None) -> Measured:
    """Send works at the same time and wait for all answers.

    Args:
        works: one for each server.
        processes: over which they are dealt out; 1 is this one.
        api_key: what every request presents.

    Raises:
        AegisError: a process of the generator ended early.
    """
    raise_file_limit()
    if processes == 1:
        load = Load(works, api_key)
        began = monotonic()
        outcomes, generator = load.run(began)
        return Measured(tuple(outcomes), began, generator)
    shares = split(works, processes)
    began, reports = _over_processes([tuple(share.values()) for share in shares], api_key)
    parts: list[list[Part]] = [[] for _ in works]
    for share, report in zip(shares, reports, strict=True):
        for index, part in zip(share, report.parts, strict=True):
            parts[index].append(part)
    merged = tuple(_merged(found) for found in parts)
    return Measured(merged, began, worst([report.generator for report in reports]))


def _over_processes(shares: Sequence[tuple[Work, ...]], api_key: str | None) -> tuple[float, list[Report]]:
    environ = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    if api_key:
        environ[KEY_VARIABLE] = api_key
    command = [sys.executable, "-P", "-m", "aegis.bench.processes"]
    with ThreadPoolExecutor(len(shares)) as pool:  # left once all children have ended
        children = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environ,
                process_group=0,  # Ctrl-C is for this process, which ends the others
            )
            for _ in shares
        ]
        try:
            list(pool.map(_tell, children, shares))
            began = monotonic() + START_SECONDS
            return began, list(pool.map(lambda child: _hear(child, began), children))
        finally:
            for child in children:
                child.kill()
            for child in children:
                child.communicate()


def _tell(child: subprocess.Popen[bytes], share: tuple[Work, ...]) -> None:
    """Give a process its works and wait until it is ready."""
    _send(child.stdin, msgspec.msgpack.encode(share))
    _receive(child.stdout)


def _hear(child: subprocess.Popen[bytes], began: float) -> Report:
    _send(child.stdin, msgspec.msgpack.encode(began))
    return _report.decode(_receive(child.stdout))


def _merged(parts: Sequence[Part]) -> Outcome:
    """Return the outcome of a work out of its parts."""
    return Outcome(joined([unpacked(part.columns) for part in parts]), max(part.ended for part in parts))


def _send(stream: IO[bytes] | None, message: bytes) -> None:
    assert stream is not None  # noqa: S101 - it is a pipe
    try:
        stream.write(len(message).to_bytes(LENGTH, "big") + message)
        stream.flush()
    except OSError:
        raise _lost() from None


def _receive(stream: IO[bytes] | None) -> bytes:
    assert stream is not None  # noqa: S101 - as above
    head = stream.read(LENGTH)
    message = stream.read(int.from_bytes(head, "big")) if len(head) == LENGTH else b""
    if not head or len(message) < int.from_bytes(head, "big"):
        raise _lost()
    return message


def _lost() -> AegisError:
    return AegisError(
        "a process of the load generator ended early", hint="look above for its error; memory may be short"
    )


def main() -> None:
    """Be one of the processes."""
    try:
        works = msgspec.msgpack.decode(_receive(sys.stdin.buffer), type=list[Work])
        load = Load(works, os.environ.get(KEY_VARIABLE))
        _send(sys.stdout.buffer, b"ready")
        began = msgspec.msgpack.decode(_receive(sys.stdin.buffer), type=float)
    except AegisError:  # whoever started it has ended
        raise SystemExit(1) from None
    threading.Thread(target=_end_with_parent, daemon=True).start()
    outcomes, generator = load.run(began)
    parts = tuple(Part(packed(outcome.records), outcome.ended) for outcome in outcomes)
    _send(sys.stdout.buffer, msgspec.msgpack.encode(Report(parts, generator)))


def _end_with_parent() -> None:
    os.read(0, 1)  # no buffered reader: its lock would stand in the way of the interpreter's end
    os._exit(1)


if __name__ == "__main__":
    main()
