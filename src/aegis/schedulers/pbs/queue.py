"""What PBS is asked, and what its answers mean: per verb the words of the command, and a parser that never fails."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aegis.schedulers.transport import Done

ID = re.compile(r"(\d+(?:\[\d*\])?)(?:\.([A-Za-z0-9][A-Za-z0-9.-]*))?(?:\+(\d+))?", re.ASCII)
ACCEPTED = re.compile(
    r"\d+(?:\[\])?\.[A-Za-z0-9][A-Za-z0-9.-]*", re.ASCII
)  # hooks of a site print further lines
UNKNOWN = re.compile(r"Unknown Job Id (\S+)")
FOREIGN = re.compile(r"illegally formed job identifier: (\S+)")
MEMBER = re.compile(r'\s*"((?:[^"\\]|\\.)*)"\s*:\s*(.*?),?\s*')  # one line of the JSON that qstat writes
UTC = {"TZ": "UTC0"}  # qstat writes times as texts in the zone of whoever asks


class JobId(Struct, frozen=True):
    """The id of a job, of an array `1015[]`, or of one of its jobs `1015[3]`."""

    number: str
    server: str = ""  # may be the first labels of its name only, or nothing
    component: int | None = None

    @classmethod
    def parse(cls, handle: str) -> JobId | None:
        """Return the id in a handle or in what a user wrote; None where it is none."""
        match = ID.fullmatch(handle.removeprefix("pbs://"))
        if not match:
            return None
        number, server, component = match.groups()
        return cls(number, server or "", int(component) if component else None)

    @property
    def text(self) -> str:
        """As PBS is told it."""
        return f"{self.number}.{self.server}" if self.server else self.number

    @property
    def short(self) -> str:
        """As it stands in file names: the number and the first label of the server."""
        return ".".join(self.text.split(".")[:2])

    def names(self, other: JobId) -> bool:
        """Tell whether both may be the same job."""
        return self.number == other.number and same_server(self.server, other.server)


def same_server(one: str, other: str) -> bool:
    """Tell whether one name is the other, or its first labels, or is not given at all."""
    return not one or not other or f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


# ------------------------------------------------------------------------------------------------ commands


def qsub_argv(variables: Mapping[str, str]) -> list[str]:
    """Return the command that submits the script on its standard input, with variables that stand in its environment.

    It goes without its helper in the background (-f), which may keep the other ends of our pipes. Names alone are listed:
    a value in the list would be cut at its commas. For the commas and quotes of a value that it finds itself, qsub needs room
    that it does not set aside (releases 20 to 23): a name that it leaves out (PBS_O_*) makes that room.
    """
    names = list(variables)
    if escaped := sum(value.count(char) for value in variables.values() for char in "',\""):
        names.append("PBS_O_ROOM" + "_" * escaped)
    return ["qsub", "-f", *(["-v", ",".join(names)] if names else [])]


def qstat_argv(ids: Iterable[JobId]) -> list[str]:
    """Return the command that tells all about some jobs, ended ones included."""
    return ["qstat", "-x", "-f", "-F", "json", *dict.fromkeys(job.text for job in ids)]


def qdel_argv(job: JobId) -> list[str]:
    """Return the command that ends a job; of one job only, for an unknown one among several stops the server."""
    return ["qdel", job.text]


# ------------------------------------------------------------------------------------------------ answers


class Answer(Struct, frozen=True):
    """What qstat said."""

    jobs: Mapping[str, tuple[JobId, Mapping[str, Any]]]  # by number
    unknown: tuple[JobId, ...]  # by its own words
    foreign: tuple[JobId, ...]  # of a server that it cannot find
    complaint: str  # the first of its others

    def find(self, job: JobId) -> tuple[JobId, Mapping[str, Any]] | None:
        """Return the whole id of a job, and all that is known of it."""
        known = self.jobs.get(job.number)
        return known if known and known[0].names(job) else None

    def disowns(self, job: JobId) -> bool:
        """Tell whether PBS says itself that it does not know the job."""
        return any(each.names(job) for each in self.unknown)


def submitted(out: str) -> JobId | None:
    """Return the id that qsub printed."""
    lines = [line.strip() for line in out.splitlines()]
    return next((JobId.parse(line) for line in reversed(lines) if ACCEPTED.fullmatch(line)), None)


def answer(done: Done) -> Answer | None:
    """Return what qstat said; None where it said nothing that can be relied on.

    The JSON alone tells nothing: without jobs it looks the same for an unknown job and for a server that is down.
    """
    found = decode(done.out)
    if "timestamp" not in found or "cannot connect" in done.err:
        return None
    jobs = found.get("Jobs")
    lines = [line.removeprefix("qstat: ") for line in done.err.splitlines() if line.strip()]
    others = [line for line in lines if not UNKNOWN.search(line) and not FOREIGN.search(line)]
    return Answer(
        jobs={
            job.number: (job, attributes)
            for name, attributes in (jobs.items() if isinstance(jobs, dict) else ())
            if isinstance(attributes, dict) and (job := JobId.parse(name))
        },
        unknown=_named(UNKNOWN, done.err),
        foreign=_named(FOREIGN, done.err),
        complaint=others[0] if others else "",
    )


def _named(pattern: re.Pattern[str], text: str) -> tuple[JobId, ...]:
    return tuple(job for match in pattern.finditer(text) if (job := JobId.parse(match[1])))


def decode(text: str) -> dict[str, Any]:
    """Return the object that qstat printed, whether or not it is JSON: releases up to 23 quote and escape carelessly."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return _decode_lines(text.split("\n"))


def _decode_lines(lines: Sequence[str]) -> dict[str, Any]:
    """Return what can be made out of lines that hold one member each."""
    root: dict[str, Any] = {}
    stack = [root]
    for line in lines:
        if line.strip(" \t\r,") == "}" and len(stack) > 1:
            stack.pop()
        elif match := MEMBER.fullmatch(line):
            name, value = match.groups()
            if value == "{":
                inner: dict[str, Any] = {}
                stack[-1][name] = inner
                stack.append(inner)
            else:
                stack[-1][name] = _scalar(value)
    return root


def _scalar(value: str) -> str | int:
    if value.startswith('"'):
        try:
            return str(json.loads(value, strict=False))
        except ValueError:
            return value.strip('"')
    return int(value) if re.fullmatch(r"-?\d{1,18}", value) else value
