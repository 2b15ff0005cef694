"""The agents of a launch: one per node, started one by one or together by the site's launcher."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import TYPE_CHECKING, Protocol

from aegis.fleet.services import log_of, stop_all, tied
from aegis.schedulers.base import GROUP_VARIABLE
from aegis.step import SSH, step_environment, step_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aegis.fleet.nodes import Host
    from aegis.runs import RunDir
    from aegis.spec.platform import Platform

AGENT_RESTARTS = 3
ENDED_BY_ITSELF = (0, 1)  # told to stop, or every instance given up; anything else is a death


class Agents(Protocol):
    """The agents of all nodes, however they are started."""

    folder: str | None  # on every node, with what an agent reads; None: the run directory has it

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

    def __init__(
        self, run: RunDir, hosts: Sequence[Host], python: str, ssh: Sequence[str] | None = None
    ) -> None:
        self.run = run
        self.hosts = hosts
        self.python = python
        self.ssh = ssh  # the site's words for ssh; None: on this machine
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.restarts: dict[str, int] = {}
        self.given_up: set[str] = set()
        self.folder: str | None = None

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
            if code is None or code in ENDED_BY_ITSELF or host.name in self.given_up:
                continue
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
        return any(
            process.poll() not in ENDED_BY_ITSELF and name not in self.given_up
            for name, process in self.processes.items()
        )

    def stop(self) -> None:
        """Ask all to end at once, wait, kill what is left."""
        stop_all(list(self.processes.values()))

    def _start(self, host: Host) -> None:
        command = agent_command(self.run, self.python, host.name, self.folder)
        if self.ssh is None:
            command += ["--parent", str(os.getpid())]
        else:
            # a terminal, so that the agent is told when the connection breaks
            command = tied(["ssh", *SSH, *self.ssh, "-tt", "--", host.name, shlex.join(command)])
        with log_of(self.run, host.name) as log:
            self.processes[host.name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )


class Together:
    """One process of the site's launcher that starts an agent on every node: srun or mpiexec."""

    def __init__(
        self, run: RunDir, hosts: Sequence[Host], python: str, platform: Platform, environ: Mapping[str, str]
    ) -> None:
        self.run = run
        self.hosts = hosts
        self.python = python
        self.platform = platform
        self.environ = environ
        self.process: subprocess.Popen[bytes] | None = None
        self.folder: str | None = None

    @property
    def host_file(self) -> Path:
        """The names of the nodes: those of a large job are too long for one argument."""
        return self.run.path / "hosts"

    def command(self) -> list[str]:
        """Return the launcher's command; each agent finds its line by its host name."""
        count, file = len(self.hosts), str(self.host_file)
        words = step_words(self.platform.launcher, count, file, self.environ.get(GROUP_VARIABLE, ""))
        return [*words, *self.platform.launcher_args, *agent_command(self.run, self.python, "", self.folder)]

    def start(self) -> None:
        """Start the launcher.

        Raises:
            OSError: the file of the nodes cannot be written.
        """
        self.host_file.write_text("".join(f"{host.name}\n" for host in self.hosts))
        with log_of(self.run, "launcher") as log:
            self.process = subprocess.Popen(
                tied(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=step_environment(self.environ),
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


def agents_for(
    platform: Platform, run: RunDir, hosts: Sequence[Host], python: str, environ: Mapping[str, str]
) -> Agents:
    """Return how this platform starts its agents."""
    if platform.launcher in {"local", "ssh"}:
        return Each(run, hosts, python, platform.launcher_args if platform.launcher == "ssh" else None)
    return Together(run, hosts, python, platform, environ)


def agent_command(run: RunDir, python: str, node: str, folder: str | None = None) -> list[str]:
    """Return the agent's command line; secrets are in a file that only its owner may read.

    Args:
        run: the run directory, which all nodes see.
        python: that runs it.
        node: the node's name; "": it finds its own.
        folder: on the node, with the agent and its orders; removed at its end.
    """
    agent, fleet = (f"{folder}/{file.name}" if folder else str(file) for file in (run.agent, run.fleet))
    command = [python, "-I", agent, fleet, "--secrets", str(run.secrets)]
    if folder:
        command += ["--folder", folder]
    return [*command, "--node", node] if node else command
