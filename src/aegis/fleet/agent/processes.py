"""Processes: found by their mark or their parent, signalled, and waited for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# Signals that ask an agent to end; the last is what srun passes on to every process of a task: at SIGTERM it kills
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
MARK = "AEGIS_START"  # environment variable by which every process of one start is found

# Runs between fork and exec in the new process: no lock of this process can be held there. argv: parent's pid, CPUs, command
SHIM = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(143)
if sys.argv[2]:
    try:
        os.sched_setaffinity(0, {int(cpu) for cpu in sys.argv[2].split(",")})
    except OSError as error:
        print("aegis: CPUs %s are not ours: %s" % (sys.argv[2], error), file=sys.stderr)
try:
    os.execvp(sys.argv[3], sys.argv[3:])
except OSError as error:
    print("aegis: cannot run %s: %s" % (sys.argv[3], error.strerror), file=sys.stderr)
    sys.exit(127)
"""


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process; ignored where it does not exist."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value)


def processes_marked(mark: str) -> list[int]:
    """Return the processes whose environment carries this start's mark, whatever group they moved to."""
    wanted = (f"{MARK}={mark}").encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if wanted in file.read().split(b"\0"):
                        found.append(int(entry))
            except OSError:
                continue
    return found


def children_of(parent: int) -> list[int]:
    """Return the live child processes of a process."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] not in (b"Z", b"X"):
                found.append(int(entry))
    return found


def signal_quietly(send: Callable[[int, int], None], pid: int, number: int) -> None:
    """Send a signal to what may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(pid, number)


class Wake:
    """An event that can be waited for together with a process, and set by a signal handler (no lock)."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def set(self) -> None:
        """Wake who waits, now or next time."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"x")

    def wait(self, timeout: float) -> bool:
        """Wait until woken or the time is over; True when woken."""
        poll = select.poll()  # not `select`, which knows no descriptor above 1023
        poll.register(self.reader, select.POLLIN)
        woken = bool(poll.poll(timeout * 1000))
        self.clear()
        return woken

    def clear(self) -> None:
        """Forget earlier calls."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.reader, 4096)


def wait_for_end(process: subprocess.Popen[bytes], wake: Wake, timeout: float) -> bool:
    """Wait until the process ends, somebody wakes us, or the time is over; True when it has ended.

    `Popen.wait(timeout)` looks twenty times a second; a process descriptor costs nothing while nothing happens.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # kernels before 5.3
        deadline = time.monotonic() + timeout
        while process.poll() is None and time.monotonic() < deadline:
            if wake.wait(min(0.2, max(0.0, deadline - time.monotonic()))):
                break
    else:
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.register(wake.reader, select.POLLIN)
            poll.poll(timeout * 1000)
        finally:
            os.close(handle)
    wake.clear()
    return process.poll() is not None
