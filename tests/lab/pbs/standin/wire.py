"""How the commands reach the server, and what all of them know of the site."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# Error numbers of PBS; a command exits with the rest by 256.
UNKNOWN_JOB, BAD_STATE, SYSTEM, PERMISSION = 15001, 15016, 15010, 15007
BAD_VALUE, UNKNOWN_QUEUE, NOT_ENABLED, NO_ACCESS, BAD_USER = 15014, 15018, 15021, 15022, 15023
UNKNOWN_RESOURCE, OVER_LIMIT, NO_MOM, FINISHED = 15035, 15036, 15070, 15139

TEXTS = {
    BAD_STATE: "Request invalid for state of job",
    PERMISSION: "Unauthorized Request ",
    UNKNOWN_JOB: "Unknown Job Id",
    UNKNOWN_QUEUE: "Unknown queue",
    NOT_ENABLED: "Queue is not enabled",
    NO_ACCESS: "Access to queue is denied",
    BAD_USER: "Bad UID for job execution",
    OVER_LIMIT: "Job violates queue and/or server resource limits",
    NO_MOM: "Server could not connect to MOM",
    FINISHED: "Job has finished",
}


@dataclass
class Queue:
    """A queue, with its limits."""

    route_to: list[str] = field(default_factory=list)  # not empty: a routing queue
    enabled: bool = True
    started: bool = True
    from_route_only: bool = False
    max_nodes: int | None = None
    max_walltime: int | None = None  # seconds


@dataclass
class Settings:
    """The site: its names, its nodes, and how long things take."""

    server: str = "aurora-pbs-0001.hostmgmt.cm.lab.test"
    submit_host: str = "aurora-uan-0009.hostmgmt.cm.lab.test"
    release: str = "23.06.06"
    user: str = "alice"  # PBS_LAB_USER in the environment makes another one
    home: str = ""
    nodes: dict[str, str] = field(default_factory=dict)  # short name: full name
    ncpus: int = 208
    ngpus: int = 6
    queues: dict[str, Queue] = field(default_factory=dict)
    default_queue: str = "debug"
    history: bool = True
    environ: dict[str, str] = field(default_factory=dict)  # of every job
    rename_hosts: bool = False  # a job sees the name of its first node
    first_id: int = 1025
    late: float = 0.1  # seconds after which an exceeded walltime is noticed
    grace: float = 2.0  # between TERM and KILL
    node_fail_requeue: float = 1.0
    unreachable: float = 0.3  # until a dead link is noticed
    start_tries: int = 3  # before a job that cannot be started is held

    @classmethod
    def load(cls, spool: Path) -> Settings:
        """Read what the lab has written."""
        values = json.loads((spool / "settings.json").read_text())
        values["queues"] = {name: Queue(**queue) for name, queue in values["queues"].items()}
        return cls(**values)

    def save(self, spool: Path) -> None:
        """Write it for server and commands."""
        (spool / "settings.json").write_text(json.dumps(asdict(self), indent=1))


class Down(Exception):
    """The server does not answer."""


class Cut(Down):
    """It died over the question."""


def ask(spool: Path, question: dict[str, Any]) -> dict[str, Any]:
    """Return the server's answer.

    Raises:
        Down: nobody listens.
        Cut: it died over it.
    """
    question["user"] = os.environ.get("PBS_LAB_USER", "")
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connect(connection, spool)
            connection.sendall(json.dumps(question).encode() + b"\n")
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            raise Down from None
    if not answer:
        raise Cut
    found: dict[str, Any] = json.loads(answer)
    return found


def connect(connection: socket.socket, spool: Path) -> None:
    """Connect to the server; its socket is named from its folder, for a whole path may be too long."""
    folder = os.open(spool, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{folder}/socket")
    finally:
        os.close(folder)


def clock(seconds: float) -> str:
    """Return HH:MM:SS."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
