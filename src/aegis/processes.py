"""Processes by pid and start time: a pid alone may belong to somebody else by now."""

from __future__ import annotations

import os
from pathlib import Path

START_FIELD = 19  # of /proc/PID/stat after the command's closing bracket: starttime, proc(5)


def start_of(pid: int) -> int | None:
    """Return when a live process started, in clock ticks after boot; None when there is none (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[START_FIELD])


def is_alive(pid: int | None, started: int | None) -> bool:
    """Tell whether that very process still runs on this machine."""
    return pid is not None and started is not None and start_of(pid) == started


def signal_process(pid: int, started: int, number: int) -> bool:
    """Signal that very process; False when it is gone. A pidfd closes the gap between look and signal."""
    import signal  # noqa: PLC0415 - start-up time

    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # a kernel before 5.3, or a Python built on one
        return _signal_by_pid(pid, started, number)
    try:
        if start_of(pid) != started:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def _signal_by_pid(pid: int, started: int, number: int) -> bool:
    if start_of(pid) != started:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def raise_file_limit() -> int:
    """Let this process and its children open as many files and connections as the system grants; return how many."""
    import contextlib  # noqa: PLC0415 - start-up time
    import resource  # noqa: PLC0415 - as above

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
