"""What Slurm is asked, and what its answers say: per verb the words of the command, and a parser that never fails."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

ID = re.compile(r"(\d{1,10})(?:([+_])(\d{1,7}))?", re.ASCII)
ACCEPTED = re.compile(r"(\d{1,10})(?:;\S*)?", re.ASCII)  # sbatch --parsable; behind `;` the cluster
SEPARATOR = "\x1f"  # stands in no name that people give

# Of squeue's environment: what would hide jobs. Times come as seconds of the epoch.
QUEUE_ENVIRON = {
    "SLURM_TIME_FORMAT": "%s",
    **{
        f"SQUEUE_{name}": ""
        for name in ("ACCOUNT", "LICENSES", "NAMES", "PARTITION", "QOS", "STATES", "USERS")
    },
}
ACCOUNTING_ENVIRON = {"SLURM_TIME_FORMAT": "%s"}
CANCEL_ENVIRON = {
    f"SCANCEL_{name}": ""
    for name in (
        "ACCOUNT",
        "BATCH",
        "FULL",
        "INTERACTIVE",
        "NAME",
        "PARTITION",
        "QOS",
        "STATE",
        "USER",
        "WCKEY",
    )
}
# Field of the answer -> what squeue and sacct call it. The name comes last: it may hold anything.
SQUEUE = {
    "id": "JobArrayID",
    "raw": "JobID",
    "word": "State",
    "reason": "Reason",
    "exit": "exit_code",
    "nodes": "NodeList",
    "batch_host": "BatchHost",
    "limit": "TimeLimit",
    "submit": "SubmitTime",
    "start": "StartTime",
    "end": "EndTime",
    "restart": "RestartCnt",
    "owner": "UserID",
    "output": "StdOut",
    "name": "Name",
}
SACCT = {
    "id": "JobID",
    "raw": "JobIDRaw",
    "word": "State",
    "exit": "ExitCode",
    "nodes": "NodeList",
    "limit": "Timelimit",
    "submit": "Submit",
    "start": "Start",
    "end": "End",
    "memory": "ReqMem",
    "owner": "UID",
    "name": "JobName",
}
LOG = ".%j.log"  # how the output files of our jobs end


class JobId(Struct, frozen=True):
    """The id of a job, of a component `1036+1`, or of one job of an array `1028_3`."""

    number: str
    sign: str = ""  # + or _
    part: str = ""

    @classmethod
    def parse(cls, handle: str) -> JobId | None:
        """Return the id in a handle or in what a user wrote; None where it is none."""
        match = ID.fullmatch(handle.removeprefix("slurm://"))
        return cls(match[1], match[2] or "", match[3] or "") if match else None

    @property
    def text(self) -> str:
        """As Slurm is told it."""
        return f"{self.number}{self.sign}{self.part}"

    @property
    def component(self) -> int | None:
        """The number of a component of a heterogeneous job."""
        return int(self.part) if self.sign == "+" else None


class Row(Struct, frozen=True, kw_only=True):
    """What squeue or sacct says of one job, as it says it."""

    id: str
    raw: str  # of component 1 of job 1036 it is 1037
    word: str
    reason: str = ""
    exit: str = ""
    nodes: str = ""
    batch_host: str = ""
    limit: str = ""
    submit: str = ""
    start: str = ""
    end: str = ""
    restart: str = ""
    output: str = ""
    memory: str = ""
    owner: str = ""
    name: str = ""

    @property
    def number(self) -> str:
        """The id of the whole job, or of the array."""
        return re.split(r"[+_]", self.id)[0]

    @property
    def is_led(self) -> bool:
        """Whether it is a component, and not the first one, on whose first node the script of the job runs."""
        return "+" in self.id and not self.id.endswith("+0")

    @property
    def hosts(self) -> str:
        """The nodes that it has or had."""
        return "" if self.nodes.startswith(("None", "n/a", "(")) else self.nodes

    @property
    def exit_code(self) -> int | None:
        """What its script ended with."""
        return self._exit[0]

    @property
    def signal(self) -> int | None:
        """What ended its script."""
        return self._exit[1] or None

    @property
    def walltime(self) -> int | None:
        """Its limit in seconds."""
        return seconds(self.limit)

    @property
    def submitted(self) -> float | None:
        """When it was submitted, or put back into the queue."""
        return _moment(self.submit)

    @property
    def started(self) -> float | None:
        """When it began; of one that waits, when it might."""
        return _moment(self.start)

    @property
    def ended(self) -> float | None:
        """When it ended; of one that runs, when its time is up."""
        return _moment(self.end)

    @property
    def restarts(self) -> int:
        """How often it was put back into the queue."""
        return int(self.restart) if self.restart.isdecimal() else 0

    @property
    def log(self) -> str:
        """The file of its output, where it is one of ours: squeue shows the pattern that it was submitted with."""
        if not self.output.endswith(LOG):
            return ""
        leader = self.number if "+" in self.id else self.raw
        return self.output.removesuffix(LOG).replace("%%", "%") + LOG.replace("%j", leader)

    @property
    def _exit(self) -> tuple[int | None, int | None]:
        """Code and signal: sacct writes `3:0`, squeue the status that wait(2) gives."""
        if match := re.fullmatch(r"(\d{1,5}):(\d{1,5})", self.exit):
            return int(match[1]), int(match[2])
        if re.fullmatch(r"\d{1,9}", self.exit):
            return int(self.exit) >> 8 & 0xFF, int(self.exit) & 0x7F
        return None, None


# ------------------------------------------------------------------------------------------------ commands


def squeue_argv() -> list[str]:
    """Return the command that lists all jobs of the user, ended ones for as long as Slurm's controller knows them."""
    fields = ",".join(f"{field}:0{SEPARATOR}" for field in SQUEUE.values())  # 0: as wide as it is
    return ["squeue", "--me", "--all", "--states=all", "--noheader", f"--Format={fields}"]


def sacct_argv(ids: Iterable[JobId]) -> list[str]:
    """Return the command that asks accounting for some jobs."""
    jobs = ",".join(dict.fromkeys(job.number if job.sign == "+" else job.text for job in ids))
    form = [f"--delimiter={SEPARATOR}", f"--format={','.join(SACCT.values())}"]
    return ["sacct", "--allocations", "--noheader", "--parsable2", *form, f"--jobs={jobs}"]


def steps_argv(number: str) -> list[str]:
    """Return the command that lists the steps of a job."""
    return ["scontrol", "--oneliner", "show", "step", number]


# ------------------------------------------------------------------------------------------------ answers


def rows(text: str, fields: Mapping[str, str]) -> Iterator[Row]:
    """Yield what squeue or sacct printed; what is no line of the form that was asked for is left out."""
    for line in text.split("\n"):
        values = line.split(SEPARATOR, len(fields) - 1)
        if len(values) == len(fields) and ID.match(values[0]) and values[2]:
            values[-1] = values[-1].removesuffix(SEPARATOR)
            yield Row(**dict(zip(fields, values, strict=True)))


def by_id(found: Iterable[Row]) -> dict[str, Row]:
    """Return the rows by their ids; of several of one job the last, for a job that lost a node has one for each size.

    A component goes by the number of its own as well, and a job of components by that of the first.
    """
    listed = {row.id: row for row in found}
    return {row.raw: row for row in reversed(listed.values())} | listed


def accepted(out: str) -> str | None:
    """Return the id that sbatch printed; None where there is none."""
    lines = [line.strip() for line in out.splitlines()]
    return next((match[1] for line in reversed(lines) if (match := ACCEPTED.fullmatch(line))), None)


def steps(text: str, number: str) -> list[str]:
    """Return the steps that the script of a job has started; not the script itself."""
    return re.findall(rf"^StepId=({number}\.\d+) ", text, re.MULTILINE)


def seconds(limit: str) -> int | None:
    """Return a time limit: `30:00`, `1:00:00`, `2-00:00:00`; None for UNLIMITED and the like."""
    match = re.fullmatch(r"(?:(\d{1,4})-)?(?:(\d{1,5}):)?(\d{1,5}):(\d\d)", limit)
    if not match:
        return None
    days, hours, minutes, rest = (int(group or 0) for group in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def holds(nodes: str, host: str) -> bool:
    """Tell whether a host is in a list such as `node[1-3,07],login`; a list that cannot be read may hold any."""
    return any(_matches(item, host) for item in re.split(r",(?![^\[]*\])", nodes))


def _matches(item: str, host: str) -> bool:
    if "[" not in item:
        return item == host
    match = re.fullmatch(r"([^\[\]]*)\[([\d,-]+)\]([^\[\]]*)", item)
    if not match:
        return True
    number = re.fullmatch(re.escape(match[1]) + r"(\d+)" + re.escape(match[3]), host)
    return number is not None and any(_within(each, int(number[1])) for each in match[2].split(","))


def _within(span: str, number: int) -> bool:
    first, _, last = span.partition("-")
    return first.isdecimal() and int(first) <= number <= int(last if last.isdecimal() else first)


def _moment(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,12}", text, re.ASCII) and int(text) else None


def ids(handles: Sequence[str]) -> dict[str, JobId]:
    """Return the ids of those handles that have one."""
    return {handle: job for handle in handles if (job := JobId.parse(handle))}
