"""One job, and its attributes as PBS shows them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from .placing import Chunk, chunks
from .wire import Settings, clock

QUEUED, HELD, DEPENDING, WAITING, PRERUN, RUNNING, EXITING = 10, 20, 22, 30, 41, 42, 51
BEGUN, TERMINATED, NORMAL, FAILED = 70, 91, 92, 93


@dataclass
class Job:
    """Everything that the server keeps of a job."""

    number: int
    owner: str
    name: str
    queue: str
    asked_queue: str
    resources: dict[str, str]  # -l
    script: str
    cwd: str
    arguments: str  # of qsub
    variables: dict[str, str]  # Variable_List, but for what the server adds
    account: str = ""
    join: str = "n"
    keep: str = "n"
    output: str = ""
    error: str = ""
    rerunnable: bool = True
    depend: str = ""
    not_before: float = 0.0  # epoch seconds: -a
    hold: str = "n"
    index: int | None = None  # of an array's job
    indices: str = ""  # of an array
    counts: str = ""  # of its jobs, by state
    state: str = "Q"
    substate: int = QUEUED
    comment: str = ""
    nodes: list[str] = field(default_factory=list)
    run_count: int = 0
    exit_status: int | None = None
    delivered: int | None = None  # Stageout_status
    deleted_by: str = ""
    lost_sister: bool = False
    created: float = 0.0
    queued: float = 0.0
    changed: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    session: int = 0

    @property
    def sequence(self) -> str:
        """The number, with the brackets of an array."""
        if self.indices:
            return f"{self.number}[]"
        return f"{self.number}" if self.index is None else f"{self.number}[{self.index}]"

    def id(self, site: Settings) -> str:
        """The whole id."""
        return f"{self.sequence}.{site.server}"

    def chunks(self) -> list[Chunk]:
        """What it asks for."""
        return chunks(self.resources.get("select", "1:ncpus=1"))

    @property
    def scatter(self) -> bool:
        """Whether each chunk goes to a node of its own."""
        return "scatter" in self.resources.get("place", "")

    @property
    def waits(self) -> bool:
        """Whether it may be started."""
        return self.state == "Q" and not self.indices

    def release(self) -> None:
        """Note that nothing but nodes, or its time, is waited for any more."""
        early = time.time() < self.not_before
        self.state, self.substate, self.hold = ("W", WAITING, "n") if early else ("Q", QUEUED, "n")

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in {"F", "X"}

    def begin(self, nodes: list[str]) -> None:
        """Note that it runs."""
        given = "+".join(
            f"({node}:{chunk.words()})" for node, chunk in zip(nodes, self.chunks(), strict=True)
        )
        self.nodes, self.state, self.substate = nodes, "R", RUNNING
        self.started = self.changed = time.time()
        self.run_count += 1
        self.exit_status = None
        self.comment = f"Job run at {moment(self.started)} on {given}"

    def end(self, exit_status: int | None, delivered: int | None = 1) -> None:
        """Note how it ended."""
        self.exit_status, self.delivered = exit_status, delivered
        self.ended = self.changed = time.time()
        self.state = "F"
        if self.deleted_by:
            self.substate = TERMINATED
        elif exit_status == 0 and not self.lost_sister:
            self.substate = NORMAL
            self.comment += " and finished"
        else:
            self.substate = FAILED
            why = {0: "", -29: " and exceeded resource walltime", -20: ""}
            self.comment += why.get(exit_status or 0, " and failed")

    def delete(self, whom: str) -> None:
        """Note who deleted it."""
        self.deleted_by = whom
        self.comment += f" and terminated by {whom}" if whom else " and terminated"

    def requeue(self) -> None:
        """Put it back into the queue: its first node was lost."""
        self.state, self.substate, self.exit_status = "Q", QUEUED, -20
        self.nodes, self.comment = [], ""
        self.ended = self.changed = time.time()
        self.started = 0.0

    def drop(self) -> None:
        """End it before it ran: deleted, or its dependency failed."""
        self.state = "F"
        self.substate = TERMINATED if self.deleted_by else NORMAL
        self.ended = self.changed = time.time()

    def attributes(self, site: Settings) -> dict[str, Any]:
        """Return what qstat -f shows, in its order; times as seconds, which the command turns into texts."""
        ran, sub = bool(self.run_count and self.nodes), self.index is not None
        running_or_over = ran or (self.indices and self.started)
        shown: list[tuple[str, Any, object]] = [
            ("Job_Name", self.name, True),
            ("Job_Owner", f"{self.owner}@{site.submit_host}", True),
            ("resources_used", self._used(), ran and self.exit_status != -20),
            ("job_state", self.state, True),
            ("queue", self.queue, True),
            ("server", site.server, True),
            ("Account_Name", self.account, self.account),
            ("Checkpoint", "u", not sub),
            ("ctime", self.created, True),
            ("depend", self.depend, self.depend),
            ("Error_Path", f"{site.submit_host}:{self._indexed(self.error)}", True),
            ("exec_host", "+".join(f"{node}/{slot}" for slot, node in enumerate(self.nodes)), ran),
            ("exec_vnode", self._vnodes(), ran),
            ("Hold_Types", self.hold, not sub),
            ("Join_Path", self.join, True),
            ("Keep_Files", self.keep, True),
            ("Mail_Points", "a", True),
            ("mtime", self.changed, True),
            ("Output_Path", f"{site.submit_host}:{self._indexed(self.output)}", True),
            ("Priority", 0, True),
            ("qtime", self.queued, True),
            ("Rerunable", str(self.rerunnable), True),
            ("Resource_List", self._asked(), True),
            ("stime", self.started, running_or_over),
            ("obittime", self.ended, self.ended and self.exit_status is not None),
            ("session_id", self.session, self.session and self.run_count),
            ("jobdir", site.home, ran),
            ("substate", self.substate, True),
            ("Variable_List", self._variables(site), True),
            ("comment", self.comment, self.comment),
            ("etime", self.queued, self.hold == "n" or self.run_count),
            ("run_count", self.run_count, self.run_count and not self.indices),
            ("Stageout_status", self.delivered, self.is_over and self.delivered is not None),
            ("Exit_status", self.exit_status, self.exit_status is not None),
            ("Submit_arguments", self.arguments, not sub),
            ("array", "True", self.indices),
            ("array_state_count", self.counts, self.indices),
            ("array_indices_submitted", self.indices, self.indices),
            ("array_indices_remaining", "-", self.indices),
            ("array_id", f"{self.number}[].{site.server}", sub),
            ("array_index", self.index, sub),
            ("history_timestamp", int(self.ended), self.is_over),
            ("project", "_pbs_project_default", True),
            ("Submit_Host", site.submit_host, True),
        ]
        return {name: value for name, value, there in shown if there}

    def _used(self) -> dict[str, Any]:
        spent = max(0.0, (self.ended if self.is_over else time.time()) - self.started)
        cpus = sum(chunk.ncpus for chunk in self.chunks())
        used = {"cpupercent": 0, "cput": "00:00:00", "mem": "8820kb", "ncpus": cpus, "vmem": "13016kb"}
        return {**used, "walltime": clock(spent)}

    def _asked(self) -> dict[str, Any]:
        every = self.chunks()
        asked: dict[str, Any] = {
            **self.resources,
            "ncpus": sum(chunk.ncpus for chunk in every),
            "nodect": len(every),
            "place": self.resources.get("place", "free" if "select" in self.resources else "pack"),
            "select": self.resources.get("select", "1:ncpus=1"),
        }
        return dict(sorted(asked.items()))

    def _variables(self, site: Settings) -> dict[str, str]:
        return {
            "PBS_O_HOME": site.home,
            "PBS_O_LOGNAME": self.owner,
            "PBS_O_PATH": "/usr/local/bin:/usr/bin:/bin",
            "PBS_O_SHELL": "/bin/bash",
            "PBS_O_WORKDIR": self.cwd,
            "PBS_O_SYSTEM": "Linux",
            **self.variables,
            "PBS_O_QUEUE": self.asked_queue,
            "PBS_O_HOST": site.submit_host,
        }

    def _vnodes(self) -> str:
        pairs = zip(self.nodes, self.chunks(), strict=False)
        return "+".join(f"({node}:{chunk.words()})" for node, chunk in pairs)

    def _indexed(self, path: str) -> str:
        if self.indices:
            return f"{path}.^array_index^"
        return path if self.index is None else f"{path}.{self.index}"


def moment(seconds: float) -> str:
    """Return a time as comments have it."""
    return time.strftime("%a %b %d at %H:%M", time.localtime(seconds))
