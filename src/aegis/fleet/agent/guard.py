"""The process that outlives everything: it starts the worker, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from .processes import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, children_of, prctl, signal_quietly

KILLED = 128  # as a shell tells it, apart from 1: all instances given up
KILL_SECONDS = 10.0  # for what was killed to be gone


class Guard:
    """Starts the worker, passes signals on, and ends whatever is left when the worker is gone."""

    def __init__(self, argv: list[str], parent: int) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        if parent:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        self.orphaned = bool(parent) and os.getppid() != parent
        archive = os.path.abspath(sys.argv[0])  # the file that was started: __file__ lies inside of it
        self.worker = subprocess.Popen([sys.executable, "-I", archive, "--worker", str(os.getpid()), *argv])
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: signal_quietly(os.kill, self.worker.pid, signal.SIGTERM))

    def run(self) -> int:
        """Wait for the worker; return its exit code, above 128 where a signal ended it."""
        if self.orphaned:
            signal_quietly(os.kill, self.worker.pid, signal.SIGTERM)
        code = self._wait()
        _end_descendants()
        return code if code >= 0 else KILLED - code

    def _wait(self) -> int:
        """Reap whatever ends, until it is the worker; return its exit code."""
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                return 1
            if pid == self.worker.pid:
                return os.waitstatus_to_exitcode(status)


def _end_descendants() -> None:
    """Kill our children until none is left: orphans become our children."""
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        left = children_of(os.getpid())
        if not left:
            return
        for pid in left:
            signal_quietly(os.kill, pid, signal.SIGKILL)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        time.sleep(0.01)
