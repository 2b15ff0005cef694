"""The process that outlives everything: it starts the worker, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time

from .processes import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    STOPPING,
    children_of,
    prctl,
    signal_quietly,
)

KILLED = 128  # as a shell tells it, apart from 1: all instances given up
KILL_SECONDS = 10.0  # for what was killed to be gone
PREDECESSOR_SECONDS = 40.0  # an agent gives its instances 15 s, then kills them


def wait_for_predecessor(fleet: str, node: str) -> socket.socket | None:
    """Wait until what is left of an earlier agent of this node has ended its servers: ports and devices are its until then.

    Return what the next one waits for: a name in the abstract socket namespace, which vanishes with the last process
    that holds it. None when the earlier one does not end.
    """
    name = "\0aegis-agent-" + hashlib.blake2b(f"{fleet}\0{node}".encode(), digest_size=16).hexdigest()
    hold = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + PREDECESSOR_SECONDS
    while True:
        try:
            hold.bind(name)
        except OSError:
            if time.monotonic() > deadline:
                hold.close()
                return None
            time.sleep(0.05)
        else:
            return hold


class Guard:
    """Starts the worker, passes signals on, and ends whatever is left when the worker is gone."""

    def __init__(self, argv: list[str], parent: int, hold: socket.socket | None = None) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        if parent:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        self.orphaned = bool(parent) and os.getppid() != parent
        archive = os.path.abspath(sys.argv[0])  # the file that was started: __file__ lies inside of it
        self.hold = hold  # the worker holds it too, the engines do not
        self.worker = subprocess.Popen(
            [sys.executable, "-I", archive, "--worker", str(os.getpid()), *argv],
            pass_fds=[hold.fileno()] if hold else [],
        )
        for number in STOPPING:
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
