"""Runs the commands of one node: `python -I runner.py FOLDER [LINE]`. Of the standard library alone, for Python 3.9 on.

FOLDER/orders has a JSON line for each node: its name, and what to run there. LINE is the number of ours; without it the node
finds its own by name. FOLDER/kinds (JSON) has the words that many commands begin with, FOLDER/secrets (mode 0600) variables
that no command line may show. Of command N, FOLDER/N.err gets the standard error, and FOLDER/N.end, once it has ended, says
how: `{"code": 0, "late": false}`.

All of them end with this process, and this one with whoever started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOK_SECONDS = 0.05
LEAVE_SECONDS = 3.0  # between SIGTERM and SIGKILL
LIBC = ctypes.CDLL(None)


class Stopped(Exception):
    """Somebody asked for the end."""


def own_order(folder: str, line: str) -> dict[str, Any]:
    """Return what is to be run on this node; nothing where nobody expects it."""
    names = {socket.gethostname(), os.environ.get("SLURMD_NODENAME", "")} - {""}
    short = {name.split(".")[0] for name in names}
    near: dict[str, Any] = {"runs": []}
    with Path(folder, "orders").open(encoding="utf-8") as file:
        for number, text in enumerate(file):
            if line and number != int(line):
                continue
            order: dict[str, Any] = json.loads(text)
            if line or order["node"] in names:
                return order
            if order["node"].split(".")[0] in short:
                near = order
    return near


def read(folder: str, name: str) -> Any:
    """Return the content of a JSON file of the folder."""
    return json.loads(Path(folder, name).read_text("utf-8"))


class Node:
    """The commands of this node: those that wait, and those that run."""

    def __init__(self, folder: str, order: dict[str, Any]) -> None:
        self.folder = folder
        self.kinds = read(folder, "kinds")
        self.environ = {**os.environ, **read(folder, "secrets")}
        self.waiting = list(reversed(order["runs"]))
        self.at_once = order.get("at_once", 1)
        self.seconds = order.get("seconds", 0.0)
        self.running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}

    def run(self) -> None:
        """Run all of them."""
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < self.at_once:
                    self.start(self.waiting.pop())
                self.look()
                time.sleep(LOOK_SECONDS)
        finally:
            end([process for process, _ in self.running.values()])

    def start(self, run: dict[str, Any]) -> None:
        """Start a command in a process group of its own."""
        kind = self.kinds[run["kind"]]
        number = run["number"]
        with Path(self.folder, f"{number}.err").open("wb") as errors:
            try:
                process = subprocess.Popen(
                    [*kind["argv"], *run["words"]],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env={**self.environ, **kind["env"], **run["env"]},
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # noqa: PLW1509 - there is one thread
                )
            except OSError as error:
                errors.write(f"{kind['argv'][0]}: {error.strerror}\n".encode())
                self.note(number, 127, late=False)
                return
        self.running[number] = (process, time.monotonic())

    def look(self) -> None:
        """Note which have ended; end those that take too long."""
        for number, (process, began) in list(self.running.items()):
            late = process.poll() is None and 0 < self.seconds < time.monotonic() - began
            if late:
                end([process])
            if process.poll() is not None:
                del self.running[number]
                end([process])  # what it has left behind
                self.note(number, process.returncode, late=late)

    def note(self, number: int, code: int, *, late: bool) -> None:
        """Tell the end of a command."""
        new = Path(self.folder, f"{number}.new")
        new.write_text(json.dumps({"code": code, "late": late}), "utf-8")
        new.replace(new.with_suffix(".end"))


def die_with_parent() -> None:
    """Get SIGTERM when the parent ends, however it ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask process groups to end, give them time together, then kill what is left of them."""
    for process in processes:
        signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + LEAVE_SECONDS
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        signal_group(process, signal.SIGKILL)
        process.wait()


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal what there is of a process and its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def stop(*_: object) -> NoReturn:
    """End everything, once."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise Stopped


STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # srun passes on the last alone


def main(argv: list[str]) -> int:
    """Run what this node has to run."""
    for number in STOPPING:
        signal.signal(number, stop)
    folder, *line = argv
    try:
        Node(folder, own_order(folder, line[0] if line else "")).run()
    except Stopped:
        return 143
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"aegis: the commands of {socket.gethostname()} cannot be run: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
