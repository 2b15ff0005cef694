"""The six verbs of a scheduler, and the values that pass through them.

describe   what is this, and is it here
render     request -> script, pure; the text is exactly what `--dry-run` prints
submit     script -> handle
query      handles -> states, in one question
cancel     end a job
logs       where a job writes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aegis.runs import JobState


class JobRequest(Struct, frozen=True, kw_only=True):
    """One job, as any scheduler can run it."""

    name: str
    models: tuple[str, ...]
    nodes: int
    work_dir: str
    log_dir: str
    endpoints_file: str  # absolute
    deployment: str  # YAML: the job's own copy, so that the script is the whole job
    python: str  # the Python that holds aegis on the nodes
    walltime: str | None = None
    queue: str | None = None
    account: str | None = None
    filesystems: str | None = None
    directives: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()  # shell lines before aegis itself runs


class SchedulerInfo(Struct, frozen=True):
    """What a scheduler is, and whether it is here."""

    name: str
    available: bool
    detail: str


class JobStatus(Struct, frozen=True, kw_only=True):
    """What a scheduler knows of a job."""

    state: JobState
    reason: str = ""
    exit_code: int | None = None


class JobLogs(Struct, frozen=True):
    """Where a job writes."""

    out: Path
    err: Path


class Scheduler(Protocol):
    """PBS, Slurm or this machine."""

    name: str

    def describe(self) -> SchedulerInfo:
        """Tell what this is, and whether it is here."""
        ...

    def render(self, request: JobRequest) -> str:
        """Return the job script."""
        ...

    def submit(self, request: JobRequest, script: str, secrets: Mapping[str, str]) -> str:
        """Submit a script and return the job's handle; secrets travel outside the script and every argv."""
        ...

    def query(self, handles: Sequence[str]) -> dict[str, JobStatus]:
        """Return the state of each job, in one question to the scheduler."""
        ...

    def cancel(self, handle: str) -> None:
        """End a job: its servers are stopped first."""
        ...

    def logs(self, handle: str) -> JobLogs:
        """Return where a job writes."""
        ...
