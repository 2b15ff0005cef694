"""Staging without MPI: the command lines of the stager's head and nodes, for each way to start processes on nodes."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from aegis.step import SSH, step_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Task = Literal["stage", "verify", "clean"]
LauncherKind = Literal["local", "ssh", "srun", "mpiexec", "pbsdsh"]


class Stager(Struct, frozen=True, kw_only=True):
    """How the stager is run: its files lie where all nodes see them."""

    archive: Path  # stager.pyz
    secret_file: Path  # mode 0600: a command line can be read by everybody on a node
    python: str = "python3"
    interface: str = ""  # of the fast network, on every node; "": the one that leads to the head
    port: int = 0  # of the head; 0: any that is free

    def head(self, list_file: Path, nodes_file: Path, task: Task = "stage") -> list[str]:
        """Return the argv of the head; its first line is a `Listening` event."""
        command = [*self._program("head"), str(list_file), "--nodes", f"@{nodes_file}", "--hear"]
        if self.port:
            command += ["--port", str(self.port)]
        return command if task == "stage" else [*command, f"--{task}"]

    def node(self, head: str, name: str = "") -> list[str]:
        """Return the argv on a node; `head` is ADDRESS:PORT, a node without a name finds its own."""
        command = [*self._program("receive"), "--head", head]
        return [*command, "--node", name] if name else command

    def _program(self, role: str) -> list[str]:
        command = [self.python, "-I", str(self.archive), role, "--secret-file", str(self.secret_file)]
        return [*command, "--interface", self.interface] if self.interface else command


class Launcher(Struct, frozen=True, kw_only=True):
    """The site's way to start a process on every node."""

    kind: LauncherKind
    words: tuple[str, ...] = ()  # the site's own, after the launcher's
    het_group: str = ""  # srun: which component of the job
    one_each: bool = False  # srun: one process for each node, so that none suffers from another


def order(hosts: Sequence[str], first: str = "") -> tuple[str, ...]:
    """Return the nodes as the chain goes through them: neighbours by number, `first` (the head's own) before all.

    Schedulers number nodes along racks and switches, so most links of the chain stay inside of one.
    """
    return tuple(sorted(dict.fromkeys(hosts), key=lambda host: (host != first, _by_number(host))))


def _by_number(host: str) -> tuple[tuple[int, int, str], ...]:
    words = re.findall(r"\d+|\D+", host)
    return tuple((0, int(word), word) if word.isdigit() else (1, 0, word) for word in words)


def node_commands(
    stager: Stager, launcher: Launcher, hosts: Sequence[str], head: str, nodes_file: Path
) -> list[list[str]]:
    """Return the processes to start from here, so that the stager runs on every node: one each, or one for all.

    `nodes_file` holds the names, one a line: those of a large job are too long for an argument.
    """
    if launcher.kind == "local":
        return [stager.node(head, host) for host in hosts]
    if launcher.kind == "ssh":
        return [
            ["ssh", *SSH, *launcher.words, "--", host, shlex.join(stager.node(head, host))] for host in hosts
        ]
    if launcher.kind == "srun" and launcher.one_each:
        alone = [step_words("srun", 1, host, launcher.het_group) for host in hosts]
        return [
            [*words, *launcher.words, *stager.node(head, host)]
            for words, host in zip(alone, hosts, strict=True)
        ]
    if launcher.kind == "pbsdsh":  # once on each node of the job: those that nobody expects are sent away
        words = ["pbsdsh", "-u", *launcher.words, "--"]
    else:
        words = step_words(launcher.kind, len(hosts), str(nodes_file), launcher.het_group)
        words += launcher.words
    return [[*words, *stager.node(head)]]
