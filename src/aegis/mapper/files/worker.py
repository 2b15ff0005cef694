"""The worker: runs the programs of a driver on the machine where it is started, and archives what they made.

One file of the standard library for any Python >= 3.9, so that it can be started anywhere as it is:

    python -I -X utf8 worker.py --driver ADDRESS:PORT --secret-file FILE [--node NAME] [--scratch DIR]

Two processes. The guard is the reaper of all descendants: when the worker has ended, however it did, nothing is left of
its programs and its scratch folder. The worker leaves when the driver does.

Messages are JSON lines. From the driver: `run` (id, argv, cwd, env, form, name, part, log, keep_log), `kill` (id, seconds).
To the driver: `here` (names, scratch), then `ended` (id, code, error, errno, tail) for each run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import hmac
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HELLO = b"AEGIS-MAP 1\n"
NONCE = 32  # bytes, as long as a digest
CONNECT_SECONDS = 30.0
KILL_SECONDS = 10.0  # for what was killed to be gone
TAIL = 2000  # bytes of a log that are told
NOT_RUN = 127  # as a shell tells it
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
LOST = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 4,
    "TCP_USER_TIMEOUT": 60_000,
}  # s; the last: ms


def proof(secret: bytes, role: bytes, asker: bytes, answerer: bytes) -> bytes:
    """Return what only who knows the secret can say about two numbers."""
    return hmac.new(secret, role + b"\0" + asker + answerer, hashlib.sha256).digest()


def tune(connection: socket.socket) -> None:
    """Notice a machine that is lost without a word."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in LOST.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def connect(address: str, port: int, secret: bytes) -> socket.socket:
    """Return a connection to the driver, after both have shown that they know the secret; which itself never travels."""
    connection = socket.create_connection((address, port), CONNECT_SECONDS)
    mine = os.urandom(NONCE)
    connection.sendall(HELLO + mine)
    answer = b""
    while len(answer) < 2 * NONCE:
        more = connection.recv(2 * NONCE - len(answer))
        if not more:
            raise OSError("the driver hung up")
        answer += more
    theirs = answer[:NONCE]
    if not hmac.compare_digest(answer[NONCE:], proof(secret, b"answer", mine, theirs)):
        raise OSError("who answers is not the driver")
    connection.sendall(proof(secret, b"ask", mine, theirs))
    connection.settimeout(None)
    tune(connection)
    return connection


class Run(threading.Thread):
    """One try of one file."""

    def __init__(self, worker: Worker, order: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._worker, self._order = worker, order
        self._folder = worker.scratch / str(order["id"])
        self._log = self._folder / "log"
        self._made = self._folder / ("stdout" if order["form"] == "stdout" else "output")
        self._lock = threading.Lock()
        self._group = 0  # of the program while it runs
        self._killed = False

    def run(self) -> None:
        code, error, number = NOT_RUN, "", 0
        try:
            code = self._program()
            if code == 0:
                self._archive()
        except OSError as problem:
            error = f"{problem.filename or ''}: {problem.strerror or problem}".removeprefix(": ")
            number = problem.errno or 0
        except Exception as problem:  # noqa: BLE001 - whatever it is, somebody waits for our word
            error = f"{type(problem).__name__}: {problem}"
        tail = self._logged(keep=code != 0 or bool(error) or self._order["keep_log"])
        shutil.rmtree(self._folder, ignore_errors=True)
        self._worker.ended(self._order["id"], code=code, error=error, errno=number, tail=tail)

    def kill(self, seconds: float) -> None:
        """End the program and all of its process group: gently, after some seconds by force."""
        with self._lock:
            self._killed = True
            self._signal(signal.SIGTERM if seconds > 0 else signal.SIGKILL)
        if seconds > 0:
            timer = threading.Timer(seconds, self.kill, (0.0,))
            timer.daemon = True
            timer.start()

    def _signal(self, number: int) -> None:
        if self._group:
            with contextlib.suppress(OSError):
                os.killpg(self._group, number)

    def _program(self) -> int:
        order = self._order
        (self._folder / "output").mkdir(parents=True)
        environ = {**os.environ, **order["env"]}
        with self._log.open("wb") as log:
            out = self._made.open("wb") if order["form"] == "stdout" else log
            with self._lock, out:
                if self._killed:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    order["argv"],
                    cwd=order["cwd"],
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=log,
                    start_new_session=True,
                )
                self._group = process.pid
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not reaped: its number is still its own
        with self._lock:
            self._signal(signal.SIGKILL)  # what it left in the background would write while we archive
            self._group = 0
        return process.wait()

    def _archive(self) -> None:
        """Write the part; it is on the disk when this returns."""
        order, part = self._order, Path(self._order["part"])
        if order["form"] == "dir":
            shutil.copytree(self._made, part, symlinks=True, copy_function=copy)
        elif order["form"] == "stdout":
            copy(self._made, part)
        else:
            with part.open("wb") as file:
                how: dict[str, Any] = (
                    {"mode": "w:gz", "compresslevel": 6} if order["form"] == "tar.gz" else {"mode": "w"}
                )
                with tarfile.open(fileobj=file, **how) as archive:
                    archive.add(self._made, order["name"])
                file.flush()
                os.fsync(file.fileno())

    def _logged(self, *, keep: bool) -> str:
        try:
            if keep:
                copy(self._log, self._order["log"])
            with self._log.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""


def copy(source: str | Path, target: str | Path) -> None:
    """Copy a file onto the disk."""
    with Path(source).open("rb") as read, Path(target).open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 20)
        write.flush()
        os.fsync(write.fileno())
    shutil.copystat(source, target)


class Worker:
    """Takes orders until the driver hangs up."""

    def __init__(self, connection: socket.socket, scratch: Path) -> None:
        self._connection, self.scratch = connection, scratch
        self._runs: dict[int, Run] = {}
        self._sending = threading.Lock()

    def serve(self, names: list[str]) -> None:
        """Do what is ordered."""
        signal.signal(signal.SIGTERM, lambda *_: self._hang_up())
        self._send({"is": "here", "names": names, "scratch": str(self.scratch)})
        # lost, or hung up under us
        with self._connection.makefile("rb") as lines, contextlib.suppress(OSError, ValueError):
            for line in lines:
                self._obey(json.loads(line))
        for run in list(self._runs.values()):
            run.kill(0.0)

    def ended(self, number: int, **told: Any) -> None:
        """Tell what came of a run."""
        self._runs.pop(number, None)
        self._send({"is": "ended", "id": number, **told})

    def _obey(self, order: dict[str, Any]) -> None:
        if order["do"] == "run":
            run = self._runs[order["id"]] = Run(self, order)
            run.start()
        elif order["do"] == "kill" and order["id"] in self._runs:
            self._runs[order["id"]].kill(order["seconds"])

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending, contextlib.suppress(OSError):  # who reads notices it
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process; ignored where it does not exist."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value)


def guard(worker: int) -> int:
    """Wait for the worker, then end whatever it left; return its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(worker, signal.SIGTERM))
    code = 1
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            break
        if pid == worker:
            code = os.waitstatus_to_exitcode(status)
            break
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            break  # none is left
        for pid in children():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return code if code >= 0 else 128 - code


def children() -> list[int]:
    """Return the child processes of this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_bytes().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(entry.parent.name))
    return found


def make_scratch(told: str) -> Path:
    """Make a folder of our own, and take away those that workers left who were killed with their guards."""
    roots = [told] if told else [os.environ.get("TMPDIR", ""), "/dev/shm", tempfile.gettempdir()]  # noqa: S108
    root = Path(next((each for each in roots if each and os.access(each, os.W_OK | os.X_OK)), roots[0]))
    prefix = f"aegis-map-{os.getuid()}-"
    for left in root.glob(prefix + "*/lock"):
        with contextlib.suppress(OSError), left.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while one of its processes lives
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    held = os.open(folder / "new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)  # let go when the last of our processes has ended
    (folder / "new").rename(folder / "lock")
    return folder


def main(argv: list[str]) -> int:
    """Serve the driver as worker and guard; return the exit code."""
    parser = argparse.ArgumentParser(prog="aegis-map-worker", description="Run programs for aegis map.")
    parser.add_argument("--driver", required=True, help="ADDRESS:PORT")
    parser.add_argument("--secret-file", required=True, help="mode 0600")
    parser.add_argument("--node", default="", help="our name (default: the host name)")
    parser.add_argument("--scratch", default="", help="folder on this machine (default: $TMPDIR or /dev/shm)")
    options = parser.parse_args(argv)
    address, _, port = options.driver.rpartition(":")
    names = [options.node] if options.node else [socket.gethostname(), os.environ.get("SLURMD_NODENAME", "")]
    scratch, guarding = None, os.getpid()
    try:
        secret = Path(options.secret_file).read_bytes().strip()
        scratch = make_scratch(options.scratch)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        worker = os.fork()
        if worker:
            return guard(worker)
        return serve((address.strip("[]"), int(port)), secret, names, scratch, guarding)
    except OSError as error:
        sys.stderr.write(f"aegis map worker: {error}\n")
        return 1
    finally:
        if scratch and os.getpid() == guarding:
            shutil.rmtree(scratch, ignore_errors=True)


def serve(driver: tuple[str, int], secret: bytes, names: list[str], scratch: Path, guarding: int) -> int:
    """Serve as the guard's child."""
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != guarding:
        return 1
    Worker(connect(*driver, secret), scratch).serve([name for name in names if name])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
