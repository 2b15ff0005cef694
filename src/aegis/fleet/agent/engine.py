"""One start of an engine: its processes, from the first to the last."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

from .processes import MARK, SHIM, processes_marked, signal_quietly

PORT_MARK = "\0port\0"  # in a command or environment: the API port, known only when it is reserved
INTERNAL_PORT_MARK = "\0internal_port\0"
KILL_SECONDS = 10.0  # for what was killed to be gone


def spawn(
    order: dict[str, Any], port: int, internal_port: int, extra_env: dict[str, str], mark: str
) -> subprocess.Popen[bytes]:
    """Start the engine, every process of which will carry the mark.

    Raises:
        OSError: no such directory, arguments too long, no more processes.
        ValueError: a null byte in what it is given.
    """

    def filled(text: str) -> str:
        return text.replace(PORT_MARK, str(port)).replace(INTERNAL_PORT_MARK, str(internal_port))

    environment = {name: value for name, value in os.environ.items() if name not in order["unset"]}
    environment.update({name: filled(value) for name, value in order["env"].items()})
    mask = order.get("mask")
    if mask:
        environment[mask] = granted(environment.get(mask, ""), os.environ.get(mask, ""))
    environment.update(extra_env)
    environment[MARK] = mark
    cpus = ",".join(str(cpu) for cpu in order["cpus"])
    command = [sys.executable, "-I", "-S", "-c", SHIM, str(os.getpid()), cpus]
    return subprocess.Popen(
        command + [filled(arg) for arg in order["argv"]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=order.get("cwd") or None,
        start_new_session=True,
    )


def granted(wanted: str, visible: str) -> str:
    """Return the devices as this node names them.

    A scheduler or a user may have granted only some (`CUDA_VISIBLE_DEVICES=2,3`): our device 0 is then the first of those.
    """
    names = [name for name in visible.split(",") if name.strip()]
    try:
        return ",".join(names[int(device)] for device in wanted.split(","))
    except (IndexError, ValueError):
        return wanted


def end(process: subprocess.Popen[bytes], mark: str, grace: float) -> bool:
    """End every process of this start: asked first, killed after the grace (s); stragglers are found by their mark.

    False when the first of them does not end.
    """
    if process.poll() is None:
        signal_quietly(os.killpg, process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    signal_quietly(os.killpg, process.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        left = [pid for pid in processes_marked(mark) if pid != process.pid]
        if not left:
            break
        for pid in left:
            signal_quietly(os.kill, pid, signal.SIGKILL)
        time.sleep(0.02)
    try:
        process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True
