"""The agents of a launch: one per node, started one by one or together by the site's launcher."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from aegis.fleet.services import log_of, stop_all, tied
from aegis.schedulers.base import GROUP_VARIABLE
from aegis.step import MOST_APART, SSH, one_node_was_refused, step_environment, step_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from aegis.fleet.nodes import Host
    from aegis.runs import RunDir
    from aegis.spec.platform import Platform

AGENT_RESTARTS = 3
ENDED_BY_ITSELF = (0, 1)  # told to stop, or every instance given up; anything else is a death
LAUNCHER: Final = "launcher"  # the name of its log


class Agents(Protocol):
    """The agents of all nodes, however they are started."""

    folder: str | None  # on every node, with what an agent reads; None: the run directory has it
    outdated: (
        bool  # the orders in that folder are: who is started from now on reads those of the run directory
    )

    def start(self) -> None:
        """Start one on every node."""
        ...

    def check(self) -> list[str]:
        """Start again what died before its time, and return what there is to say about it."""
        ...

    @property
    def given_up(self) -> set[str]:
        """Nodes whose agent is not started again; who adds one means it."""
        ...

    @property
    def running(self) -> bool:
        """Whether any agent runs."""
        ...

    def stop(self) -> None:
        """End all of them, and with them every instance."""
        ...


class Each:
    """An agent process per node, started from here: on this machine, or by a command that reaches the node.

    Args:
        run: the run directory.
        hosts: the nodes.
        python: that runs the agents.
        reach: returns the command that runs a command on a node; None: all nodes are this machine.
        environ: of those commands; None: that of this process.
    """

    def __init__(
        self,
        run: RunDir,
        hosts: Sequence[Host],
        python: str,
        reach: Callable[[str, list[str]], list[str]] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.run = run
        self.hosts = hosts
        self.python = python
        self.reach = reach
        self.environ = environ
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.restarts: dict[str, int] = {}
        self.given_up: set[str] = set()
        self.folder: str | None = None
        self.outdated = False

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
        command = agent_command(self.run, self.python, host.name, self.folder, outdated=self.outdated)
        if self.reach is None:
            command += ["--parent", str(os.getpid())]
        else:
            command = tied(self.reach(host.name, command))
        with log_of(self.run, host.name) as log:
            self.processes[host.name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self.environ,
            )


class Together:
    """One process of the site's launcher that starts an agent on every node: srun or mpiexec.

    Slurm ends an srun on all of its nodes when it cannot start on one of them. Then each node gets an srun of its own.
    An mpiexec ends on all of its nodes when one is lost. So where there is a spare node, each gets one of its own.
    """

    def __init__(
        self,
        run: RunDir,
        hosts: Sequence[Host],
        python: str,
        platform: Platform,
        environ: Mapping[str, str],
        *,
        spare: bool = False,
    ) -> None:
        self.run = run
        self.hosts = hosts
        self.python = python
        self.platform = platform
        self.from_the_first = spare and platform.launcher == "mpiexec" and len(hosts) <= MOST_APART
        self.group = environ.get(GROUP_VARIABLE, "")
        self.environ = step_environment(environ)
        self.process: subprocess.Popen[bytes] | None = None
        self.apart: Each | None = None
        self._before = 0  # bytes of the log that an earlier run of the same job wrote
        self.folder: str | None = None
        self._outdated = False

    @property
    def outdated(self) -> bool:
        """Whether the orders in the folder are."""
        return self._outdated

    @outdated.setter
    def outdated(self, value: bool) -> None:
        self._outdated = value
        if self.apart:
            self.apart.outdated = value

    @property
    def given_up(self) -> set[str]:
        """The nodes whose agent is not started again; a launcher of all nodes tells of none."""
        return self.apart.given_up if self.apart else set()

    @property
    def host_file(self) -> Path:
        """The names of the nodes: those of a large job are too long for one argument."""
        return self.run.path / "hosts"

    def command(self) -> list[str]:
        """Return the launcher's command; each agent finds its line by its host name."""
        words = step_words(self.platform.launcher, len(self.hosts), str(self.host_file), self.group)
        return [*words, *self.platform.launcher_args, *agent_command(self.run, self.python, "", self.folder)]

    def start(self) -> None:
        """Start the launcher.

        Raises:
            OSError: the file of the nodes cannot be written.
        """
        self.host_file.write_text("".join(f"{host.name}\n" for host in self.hosts))
        if self.from_the_first:
            self._split()
            return
        with log_of(self.run, LAUNCHER) as log:
            self._before = log.seek(0, os.SEEK_END)
            self.process = subprocess.Popen(
                tied(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self.environ,
            )

    def check(self) -> list[str]:
        """Start an srun for each node where one for all was refused; else its end is the end of the launch."""
        if self.apart:
            return self.apart.check()
        if not self._refused():
            return []
        self._split()
        return [
            "srun cannot start the agent of some node, and so ended all: each node gets an srun of its own"
        ]

    @property
    def running(self) -> bool:
        """Whether the launcher runs, or is about to be started for each node."""
        if self.apart:
            return self.apart.running
        return self.process is not None and (self.process.poll() is None or self._refused())

    def stop(self) -> None:
        """End the launcher, and with it every agent."""
        processes = (
            list(self.apart.processes.values()) if self.apart else [self.process] if self.process else []
        )
        # SIGUSR1 is passed on to the agents; at SIGTERM srun kills them, and nobody ends their engines in order
        stop_all(processes, signal.SIGUSR1 if self.platform.launcher == "srun" else signal.SIGTERM)

    def _split(self) -> None:
        self.apart = Each(self.run, self.hosts, self.python, self._alone, self.environ)
        self.apart.folder, self.apart.outdated = self.folder, self.outdated
        self.apart.start()

    def _alone(self, node: str, command: list[str]) -> list[str]:
        where = node
        if self.platform.launcher != "srun":  # it knows nodes from a file only
            file = self.host_file.with_name(f"hosts.{node}")
            file.write_text(f"{node}\n")
            where = str(file)
        words = step_words(self.platform.launcher, 1, where, self.group)
        return [*words, *self.platform.launcher_args, *command]

    def _refused(self) -> bool:
        """Tell whether srun has ended because of one node."""
        if self.process is None or self.process.poll() is None:
            return False
        try:
            said = (
                (self.run.nodes / f"{LAUNCHER}.log").read_bytes()[self._before :].decode("utf-8", "replace")
            )
        except OSError:
            return False
        return one_node_was_refused(self.platform.launcher, len(self.hosts), said)


def agents_for(
    platform: Platform,
    run: RunDir,
    hosts: Sequence[Host],
    python: str,
    environ: Mapping[str, str],
    *,
    spare: bool = False,
) -> Agents:
    """Return how this platform starts its agents; `spare`: the loss of a node is to be survived."""
    if platform.launcher == "local":
        return Each(run, hosts, python)
    if platform.launcher == "ssh":
        return Each(run, hosts, python, partial(_by_ssh, platform.launcher_args))
    return Together(run, hosts, python, platform, environ, spare=spare)


def _by_ssh(words: Sequence[str], node: str, command: list[str]) -> list[str]:
    """Return the command with a terminal, so that the agent is told when the connection breaks."""
    return ["ssh", *SSH, *words, "-tt", "--", node, shlex.join(command)]


def agent_command(
    run: RunDir, python: str, node: str, folder: str | None = None, *, outdated: bool = False
) -> list[str]:
    """Return the agent's command line; secrets are in a file that only its owner may read.

    Args:
        run: the run directory, which all nodes see.
        python: that runs it.
        node: the node's name; "": it finds its own.
        folder: on the node, with the agent and its orders; removed at its end.
        outdated: those orders are: the run directory has the present ones.
    """
    agent, fleet = (f"{folder}/{file.name}" if folder else str(file) for file in (run.agent, run.fleet))
    orders = str(run.fleet) if outdated else fleet
    command = [python, "-I", agent, orders, "--secrets", str(run.secrets)]
    if folder:
        command += ["--folder", folder]
    return [*command, "--node", node] if node else command
