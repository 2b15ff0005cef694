"""The daemon of a job's first node: starts the script, watches the walltime, ends what belongs to the job.

To PBS, what belongs to a job is the session of its script. A process that made a session of its own escapes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

TICK = 0.02
WALLTIME_EXCEEDED = -29
# The user's login shell stays above the script: it turns a signal of the script into a code, and may get one itself.
LOGIN = ["/bin/bash", "-c", '"$0"; exit $?']
RENAME = ["unshare", "--uts", "/bin/bash", "-c", 'hostname "$0"; exec "$@"']


@dataclass
class Task:
    """What a node is told about a job."""

    id: str
    script: str
    node: str
    environ: dict[str, str]
    home: str
    output: str
    error: str  # the same where both are joined
    direct: bool  # output goes to its place at once
    undelivered: str  # folder
    walltime: int | None
    late: float
    grace: float
    rename_host: bool


@dataclass
class End:
    """What a node tells at the end."""

    exit_status: int = 0
    delivered: int = 1
    failed_to_start: bool = False
    words: list[str] = field(default_factory=list)


class Mom:
    """One running job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.task = Task(**json.loads((folder / "task.json").read_text()))
        self.killed = 0.0  # when TERM was sent first
        self.heeded = 0  # wishes to kill it
        self.over_walltime = False

    def run(self) -> None:
        """Run the job to its end, and say how it was."""
        end = self._run()
        _write(self.folder / "end.json", json.dumps(asdict(end)))

    def _run(self) -> End:
        try:
            out, error = self._open()
        except OSError:
            return End(failed_to_start=True)
        with out, error:
            started = time.monotonic()
            process = self._start(out, error)
            _write(self.folder / "session", str(process.pid))
            while process.poll() is None or (self.killed and session(process.pid)):
                self._watch(process.pid, time.monotonic() - started, error)
                time.sleep(TICK)
            _signal(process.pid, signal.SIGKILL)
        code = process.returncode
        status = WALLTIME_EXCEEDED if self.over_walltime else code if code >= 0 else 256 - code
        return End(status, self._deliver())

    def _watch(self, sid: int, elapsed: float, error: IO[bytes]) -> None:
        limit = self.task.walltime
        if limit is not None and not self.over_walltime and elapsed > limit + self.task.late:
            self.over_walltime = True
            error.write(f"=>> PBS: job killed: walltime {int(elapsed)} exceeded limit {limit}\n".encode())
            error.flush()
            self._end(sid, signal.SIGTERM)
        wishes = _lines(self.folder / "kill")
        for number in wishes[self.heeded :]:
            self._end(sid, int(number))
        self.heeded = len(wishes)
        if self.killed and time.monotonic() - self.killed > self.task.grace:
            _signal(sid, signal.SIGKILL)

    def _end(self, sid: int, number: int) -> None:
        self.killed = self.killed or time.monotonic()
        _signal(sid, number)

    def _start(self, out: IO[bytes], error: IO[bytes]) -> subprocess.Popen[bytes]:
        rename = [*RENAME, self.task.node] if self.task.rename_host else []
        return subprocess.Popen(
            [*rename, *LOGIN, self.task.script],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=error,
            cwd=self.task.home,
            env=self.task.environ,
            start_new_session=True,
        )

    def _open(self) -> tuple[IO[bytes], IO[bytes]]:
        names = [self.task.output, self.task.error]
        if not self.task.direct:
            names = [str(self.folder / "out"), str(self.folder / ("out" if names[0] == names[1] else "err"))]
        with contextlib.ExitStack() as stack:
            out, error = (stack.enter_context(Path(name).open("ab")) for name in names)
            stack.pop_all()
        return out, error

    def _deliver(self) -> int:
        """Bring the output to its place; return 0 where that fails."""
        if self.task.direct:
            return 1
        delivered = 1
        for name, goal in (("out", self.task.output), ("err", self.task.error)):
            file = self.folder / name
            if not file.exists():
                continue
            try:
                shutil.copyfile(file, goal)
            except OSError:
                shutil.copyfile(file, Path(self.task.undelivered, f"{self.task.id}.OU"))
                delivered = 0
        return delivered


def session(sid: int) -> list[int]:
    """Return the live processes of a session."""
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208 - read often
        if entry.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()
                if int(words[3]) == sid and words[0] not in {b"Z", b"X"}:
                    found.append(int(entry))
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except FileNotFoundError:
        return []


def _signal(sid: int, number: int) -> None:
    for pid in session(sid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _write(file: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def main() -> None:
    """Run the job whose folder is given."""
    Mom(Path(sys.argv[1])).run()
