"""The processes that a launch itself starts: the registry, and one agent per node. All of them end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aegis.errors import RegistryUnreachable, SiteError
from aegis.fleet.agent.processes import SHIM
from aegis.processes import is_running
from aegis.registry.client import RegistryClient
from aegis.spec.deployment import REGISTRY_PORT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from aegis.fleet.nodes import Host
    from aegis.runs import RunDir
    from aegis.spec.platform import Platform

PORTS_TRIED = 50  # after the default one, where the user named none
REGISTRY_START_SECONDS = 30.0
AGENT_RESTARTS = 3
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
        command += ["--port-file", str(self.run.port_file)]
        with _log(self.run, "registry") as log:
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


class Agents(Protocol):
    """The agents of all nodes, however they are started."""

    def start(self) -> None:
        """Start one on every node."""
        ...

    def check(self) -> list[str]:
        """Start again what died before its time, and return what there is to say about it."""
        ...

    @property
    def running(self) -> bool:
        """Whether any agent runs."""
        ...

    def stop(self) -> None:
        """End all of them, and with them every instance."""
        ...


class Each:
    """An agent process per node, started from here: on this machine, or through ssh."""

    def __init__(self, run: RunDir, hosts: Sequence[Host], python: str, *, remote: bool) -> None:
        self.run = run
        self.hosts = hosts
        self.python = python
        self.remote = remote
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.restarts: dict[str, int] = {}
        self.given_up: set[str] = set()
        self.waiting: set[str] = set()  # to be started again

    def start(self) -> None:
        """Start one on every node."""
        for host in self.hosts:
            self._start(host)

    def check(self) -> list[str]:
        """Start again an agent that was killed; one that gave up its instances stays down."""
        said = []
        for host in self.hosts:
            process = self.processes[host.name]
            code = process.poll()
            if code in (None, 0, 1) or host.name in self.given_up:
                continue
            if self._lingers(host):
                self.waiting.add(host.name)
                continue
            self.waiting.discard(host.name)
            tries = self.restarts.get(host.name, 0)
            if tries >= AGENT_RESTARTS:
                self.given_up.add(host.name)
                said.append(f"the agent of node {host.name} ended {tries + 1} times (code {code}): given up")
                continue
            self.restarts[host.name] = tries + 1
            said.append(f"the agent of node {host.name} ended (code {code}): started again")
            self._start(host)
        return said

    @property
    def running(self) -> bool:
        """Whether any agent runs, or is about to."""
        return bool(self.waiting) or any(process.poll() is None for process in self.processes.values())

    def stop(self) -> None:
        """Ask all to end at once, wait, kill what is left."""
        stop_all(list(self.processes.values()))

    def _lingers(self, host: Host) -> bool:
        """Tell whether what the agent left is still ending its servers: their ports and devices are not free yet."""
        if self.remote:
            return False
        shared = agent_command(self.run, self.python, host.name)[3:]  # what guard and worker both have
        return is_running(shared)

    def _start(self, host: Host) -> None:
        command = agent_command(self.run, self.python, host.name)
        if self.remote:
            import shlex  # noqa: PLC0415 - ssh only

            command = ["ssh", "-oBatchMode=yes", "-tt", host.name, shlex.join(command)]
        else:
            command += ["--parent", str(os.getpid())]
        with _log(self.run, host.name) as log:
            self.processes[host.name] = subprocess.Popen(
                tied(command) if self.remote else command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


class Together:
    """One process of the site's launcher that starts an agent on every node: srun or mpiexec."""

    def __init__(self, run: RunDir, hosts: Sequence[Host], python: str, platform: Platform) -> None:
        self.run = run
        self.hosts = hosts
        self.python = python
        self.platform = platform
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return the launcher's command; each agent finds its line by its host name."""
        count, names = str(len(self.hosts)), ",".join(host.name for host in self.hosts)
        extra = list(self.platform.launcher_args)
        if self.platform.launcher == "srun":
            head = [
                "srun",
                f"--nodes={count}",
                f"--ntasks={count}",
                "--ntasks-per-node=1",
                f"--nodelist={names}",
            ]
            head += ["--kill-on-bad-exit=0", "--wait=0", "--overlap", "--export=ALL"]
        else:
            host_file = self.run.path / "hosts"
            host_file.write_text("".join(f"{host.name}\n" for host in self.hosts))
            head = ["mpiexec", "-n", count, "-ppn", "1", "--hostfile", str(host_file)]
        return [*head, *extra, *agent_command(self.run, self.python, "")]

    def start(self) -> None:
        """Start the launcher.

        Raises:
            SiteError: it is not here.
        """
        with _log(self.run, "launcher") as log:
            self.process = subprocess.Popen(
                tied(self.command()), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def check(self) -> list[str]:
        """Return nothing: the launcher is not started twice, its end ends the launch."""
        return []

    @property
    def running(self) -> bool:
        """Whether the launcher runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End the launcher, and with it every agent."""
        if self.process is not None:
            stop_all([self.process])


def agents_for(platform: Platform, run: RunDir, hosts: Sequence[Host], python: str) -> Agents:
    """Return how this platform starts its agents."""
    if platform.launcher in {"local", "ssh"}:
        return Each(run, hosts, python, remote=platform.launcher == "ssh")
    return Together(run, hosts, python, platform)


def agent_command(run: RunDir, python: str, node: str) -> list[str]:
    """Return the agent's command line; secrets are in a file that only its owner may read."""
    command = [python, "-I", str(run.agent), str(run.fleet), "--secrets", str(run.secrets)]
    return [*command, "--node", node] if node else command


def stop_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask all processes to end, give them time together, then kill."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
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


def _log(run: RunDir, name: str) -> IO[bytes]:
    """Open a log for appending; where the disk is full the output is dropped, and the launch goes on."""
    try:
        return (run.nodes / f"{name}.log").open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


__all__ = [
    "Agents",
    "RegistryProcess",
    "RegistryUnreachable",
    "agents_for",
    "registry_client",
]
