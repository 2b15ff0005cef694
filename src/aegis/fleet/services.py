"""The processes that a launch itself starts end with it, however it ends; among them the registry."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.errors import RegistryUnreachable, SiteError
from aegis.fleet.agent.processes import SHIM
from aegis.registry.client import RegistryClient
from aegis.spec.deployment import REGISTRY_PORT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from aegis.runs import RunDir

PORTS_TRIED = 50  # after the default one, where the user named none
REGISTRY_START_SECONDS = 30.0
STOP_SECONDS = 40.0  # an agent gives its instances 15 s, then kills them


def tied(argv: Sequence[str]) -> list[str]:
    """Return a command that gets SIGTERM when this process ends, however it ends."""
    return [sys.executable, "-I", "-S", "-c", SHIM, str(os.getpid()), "", *argv]


class RegistryProcess:
    """The registry of a launch; started again when it dies (it reads its journal, and agents re-announce)."""

    def __init__(self, run: RunDir, bind: str, address: str, port: int | None) -> None:
        self.run = run
        self.bind = bind
        self.address = address
        self.wanted = port
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"http://{self.address}:{self.port}"

    def start(self) -> None:
        """Start it on the port that was asked for, else on the first free one from 8471 on.

        Raises:
            SiteError: the port is taken, or it does not start.
        """
        candidates = [self.wanted] if self.wanted else range(REGISTRY_PORT, REGISTRY_PORT + PORTS_TRIED)
        said = ""
        for port in candidates:
            self._spawn(port)
            said = self._wait()
            if not said:
                return
            if "in use" not in said and "taken" not in said:
                break
        raise SiteError(
            f"the registry does not start on port {self.wanted or REGISTRY_PORT}: {said}",
            hint="choose another port with --registry-port",
        )

    def revive(self) -> bool:
        """Start it again on its port if it died; True when that was so."""
        if self.process is not None and self.process.poll() is None:
            return False
        self._spawn(self.port)
        return True

    def stop(self) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _spawn(self, port: int) -> None:
        self.run.port_file.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-P",  # the working directory holds no code of ours
            "-m",
            "aegis",
            "registry",
            "serve",
            "--host",
            self.bind,
            "--port",
            str(port),
        ]
        command += ["--token-file", str(self.run.token), "--journal", str(self.run.journal)]
        command += ["--port-file", str(self.run.port_file), "--logs", str(self.run.instances)]
        with log_of(self.run, "registry") as log:
            self.process = subprocess.Popen(
                tied(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self) -> str:
        """Wait until it listens. Return what it said instead, if it ended."""
        deadline = time.monotonic() + REGISTRY_START_SECONDS
        while time.monotonic() < deadline and self.process is not None:
            if self.run.port_file.exists():
                self.port = int(self.run.port_file.read_text())
                return ""
            if self.process.poll() is not None:
                said = _last_error(self.run.nodes / "registry.log")
                return said or f"it ended with code {self.process.returncode}"
            time.sleep(0.01)
        self.stop()
        return f"no answer in {REGISTRY_START_SECONDS:.0f} s"


def stop_all(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals = signal.SIGTERM) -> None:
    """Ask all processes to end, give them time together, then kill."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def registry_client(url: str, run: RunDir, timeout: float = 5.0) -> RegistryClient:
    """Return a client that may write, for who may read the run directory's token."""
    try:
        token = run.token.read_text().strip() or None
    except OSError:
        token = None
    return RegistryClient(url, token, timeout)


def _last_error(log: Path) -> str:
    """Return the last error in a log, else its last line."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")


def log_of(run: RunDir, name: str) -> IO[bytes]:
    """Open a log for appending; where the disk is full the output is dropped, and the launch goes on."""
    try:
        return (run.nodes / f"{name}.log").open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


__all__ = ["RegistryProcess", "RegistryUnreachable", "log_of", "registry_client", "stop_all", "tied"]
