"""How workers are started: on this machine, or on nodes by the site's launcher."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from aegis.step import SSH, step_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

HERE = "here"  # the place of the worker that serves all instances from this machine


class Site(Struct, frozen=True, kw_only=True):
    """The site's way to start a process on a node."""

    launcher: Literal["local", "ssh", "srun", "mpiexec"] = "local"
    words: tuple[str, ...] = ()  # the site's own, after the launcher's
    het_group: str = ""  # srun: which component of the job
    address: str = "127.0.0.1"  # of this machine, as the nodes reach it
    python: str = "python3"
    environ: dict[str, str] | None = None  # None: as here
    tied: Callable[[list[str]], list[str]] = list  # makes a command end with this process
    nodes: bool = False  # programs run next to their instances, not here
    names: dict[str, str] = {}  # of nodes as the launcher knows them, by the address in an endpoints file

    def place(self, node: str) -> str:
        """Return where the programs of an instance on a node run."""
        return short(self.name(node)) if self.nodes else HERE

    def name(self, node: str) -> str:
        """Return a node's name as the launcher knows it."""
        return self.names.get(node, node) if self.nodes else HERE

    def groups(self, places: Sequence[str]) -> list[list[str]]:
        """Return which workers are started by one process."""
        return [[*places]] if self.launcher in {"srun", "mpiexec"} else [[place] for place in places]

    def command(self, names: Sequence[str], worker: Sequence[str], host_file: Path) -> list[str]:
        """Return the process that starts a worker on each node of a group.

        Args:
            names: of the nodes.
            worker: its words.
            host_file: with the names, one a line.
        """
        if self.launcher == "local":
            return [*worker, "--node", names[0]]
        if self.launcher == "ssh":
            return [
                *("ssh", *SSH, *self.words, "--", names[0]),
                shlex.join([*worker, "--node", names[0]]),
            ]
        return [
            *step_words(self.launcher, len(names), str(host_file), self.het_group),
            *self.words,
            *worker,
        ]

    def start(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process.

        Raises:
            OSError: there is no such program, or the log cannot be written.
        """
        with log.open("ab") as out:
            return subprocess.Popen(
                self.tied(command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environ
            )


def short(name: str) -> str:
    """Return a node's name without its domain; an address stays whole."""
    first = name.partition(".")[0]
    return name if first.isdigit() or ":" in name else first
