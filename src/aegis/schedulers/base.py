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

from aegis.errors import SiteError
from aegis.runs import JobState  # noqa: TC001 - a JobStatus is read from JSON, by its annotations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

JOB_VARIABLE = "AEGIS_JOB"  # inside a job: its handle
RUN_DIR_VARIABLE = "AEGIS_RUN_DIR"  # inside a job: where it writes
SECRETS_VARIABLE = "AEGIS_SECRETS_FILE"  # inside a job: a file of its owner alone, JSON of name -> value
PREDECESSOR_VARIABLE = "AEGIS_PREDECESSOR"  # inside a job that takes over from another: that one's handle
FAILED_STARTS_VARIABLE = (
    "AEGIS_FAILED_STARTS"  # inside it: how many before it failed at their start, in a row
)
GROUP_VARIABLE = "AEGIS_HET_GROUP"  # inside a component of a Slurm het job: its number
SECRET_NAMES = (
    "HF_TOKEN",
    "VLLM_API_KEY",
)  # of the environment: engines need them, schedulers must not store them
# Of the environment of whoever submits: what a job needs and its script does not say. PBS passes nothing else.
PASSED = (SECRETS_VARIABLE, "AEGIS_AGENT_POLICY", "AEGIS_PLATFORM_DIR", "AEGIS_STATE_DIR", "XDG_STATE_HOME")


NOTICE_SECONDS = 60  # before the walltime, in which servers are stopped in good order


def notice(walltime: int) -> int:
    """Return how many seconds before its walltime a job is told; short jobs are told later, for they need the time."""
    return max(1, min(NOTICE_SECONDS, walltime // 10))


def last_error(log: str) -> str:
    """Return the error that aegis ended a log with, hint included; nothing where it did not."""
    lines = log.splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    return "\n".join(lines[errors[-1] :]).removeprefix("error: ") if errors else ""


class SchedulerUnavailable(SiteError):
    """The scheduler does not answer, or the way to it is cut; what is known of its jobs stays known, and grows old."""

    transient = True


class Resources(Struct, frozen=True, kw_only=True):
    """What one component of a job asks of the scheduler."""

    nodes: int
    devices: int | None = None  # per node; None: whole nodes, or a scheduler that does not count devices
    device_type: str | None = None  # as the scheduler spells it: a100, l40s
    device_option: str = "none"  # `gpus` of the platform: how devices are asked for
    cpus: int | None = None  # per node
    memory: str | None = None  # per node, such as 64G
    walltime: str | None = None  # HH:MM:SS
    queue: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    filesystems: str | None = None
    directives: tuple[str, ...] = ()  # further ones, as the scheduler spells them


class Component(Struct, frozen=True, kw_only=True):
    """One deployment of a job: most jobs have one, a batch launch has one per model."""

    models: tuple[str, ...]
    folder: str  # absolute: <log_dir>/<family>
    stem: str  # the run directory is <folder>/<stem>.<job id>
    endpoints_file: str  # absolute
    deployment: str  # YAML: the job's own copy, so that the script is the whole job
    resources: Resources
    profile: str = ""  # YAML: the site profile, where aegis on the nodes has none of that name and content
    profile_name: str = ""


class After(Struct, frozen=True, kw_only=True):
    """The job that another takes over from, and when that one may start: Slurm counts from the start, PBS has a clock."""

    job: str  # handle
    seconds: int | None = None  # after the start of that job; None: as soon as there are nodes
    time: float | None = None  # the same moment in epoch seconds
    ended: bool = False  # not before that job has ended, however it did
    failed_starts: int = 0  # successors in a row that failed at their start


class JobRequest(Struct, frozen=True, kw_only=True):
    """One job, as any scheduler can run it."""

    name: str
    components: tuple[Component, ...]  # at least one
    work_dir: str
    python: str  # the Python that holds aegis on the nodes
    setup: tuple[str, ...] = ()  # shell lines before aegis itself runs
    service: str | None = None  # that it belongs to
    after: After | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The models of all components."""
        return tuple(model for component in self.components for model in component.models)


class SchedulerInfo(Struct, frozen=True):
    """What a scheduler is, and whether it is here."""

    name: str
    available: bool
    detail: str


class Submission(Struct, frozen=True):
    """A job that was accepted."""

    handle: str  # of the job; component k of several is `<handle>+k`
    warnings: tuple[str, ...] = ()  # what the scheduler said besides


class JobStatus(Struct, frozen=True, kw_only=True):
    """What a scheduler knows of a job; a job that runs is LAUNCHING, for whether its servers answer is not its business."""

    state: JobState
    reason: str = ""  # in words: why it waits, or why it ended
    word: str = ""  # the scheduler's own: COMPLETING, F
    exit_code: int | None = None
    signal: int | None = None
    nodes: str = ""  # host list, as the scheduler writes it
    submitted: float | None = None  # epoch seconds, as the next two
    started: float | None = None
    ended: float | None = None
    walltime: int | None = None  # seconds
    restarts: int = 0
    log: str = ""  # file that the scheduler itself writes the job's output to
    name: str = ""
    age: float = 0.0  # seconds since the scheduler said so


class JobLogs(Struct, frozen=True):
    """Where a job writes."""

    out: str
    err: str


class Scheduler(Protocol):
    """PBS, Slurm or this machine."""

    name: str

    def describe(self) -> SchedulerInfo:
        """Tell what this is, and whether it is here."""
        ...

    def render(self, request: JobRequest) -> str:
        """Return the job script."""
        ...

    def submit(self, request: JobRequest, script: str, secrets: Mapping[str, str]) -> Submission:
        """Submit a script and record the job; secrets travel outside the script and every argv.

        Raises:
            SiteError: the scheduler refuses; the message is its own.
            SchedulerUnavailable: it does not answer.
        """
        ...

    def query(self, handles: Sequence[str]) -> dict[str, JobStatus]:
        """Return the state of each job, in one question to the scheduler; ended ones are asked of its accounting.

        A job that neither knows is left out.

        Raises:
            SchedulerUnavailable: it does not answer.
        """
        ...

    def cancel(self, handle: str) -> None:
        """End a job, or one component of it.

        Raises:
            NotFoundError: the scheduler does not know it.
            SiteError: it refuses.
            SchedulerUnavailable: it does not answer.
        """
        ...

    def logs(self, handle: str) -> JobLogs:
        """Return where a job writes.

        Raises:
            NotFoundError: there is no such job.
        """
        ...
