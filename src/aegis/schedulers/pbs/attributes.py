"""The attributes of a job as qstat shows them, read without trust in their types."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.schedulers.pbs.queue import JobId

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Job(Struct, frozen=True):
    """The attributes of a job; any may be missing, and a text may have come as a number, or the other way round."""

    attributes: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return an attribute as text."""
        value = self.attributes.get(name)
        return str(value).strip() if isinstance(value, str | int | float) else ""

    def number(self, name: str) -> int | None:
        """Return an attribute as a number."""
        try:
            return int(float(self.text(name)))
        except (ValueError, OverflowError):
            return None

    def moment(self, name: str) -> float | None:
        """Return a time, which PBS writes as a text in UTC when it is asked so, or as seconds."""
        text = self.text(name)
        words = text.split()
        if len(words) != 5 or words[1] not in MONTHS:  # noqa: PLR2004 - Sat Nov 21 02:02:54 2026
            return float(text) if text.isdecimal() else None
        try:
            hour, minute, second = (int(part) for part in words[3].split(":"))
            year, month, day = int(words[4]), MONTHS.index(words[1]) + 1, int(words[2])
            return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
        except (ValueError, OverflowError):
            return None

    def part(self, name: str) -> Job:
        """Return an attribute that holds others."""
        value = self.attributes.get(name)
        return Job(value if isinstance(value, dict) else {})

    @property
    def comment(self) -> str:
        """What PBS says of it."""
        return self.text("comment")

    @property
    def exit_status(self) -> int | None:
        """As PBS counts: below zero its own reasons, above 256 signals."""
        return self.number("Exit_status")

    @property
    def owner(self) -> str:
        """Who submitted it."""
        return self.text("Job_Owner").partition("@")[0]


def hosts(exec_host: str) -> str:
    """Return the nodes of `a/0+b/0*12`, each once."""
    return ",".join(dict.fromkeys(each.partition("/")[0] for each in exec_host.split("+") if each))


def seconds(walltime: str) -> int | None:
    """Return the seconds of `HH:MM:SS`, of a shorter form, or of a mere number."""
    if not re.fullmatch(r"\d{1,9}(:\d{1,2}){0,2}", walltime):
        return None
    total = 0
    for part in walltime.split(":"):
        total = total * 60 + int(part)
    return total


def log_of(job: Job, job_id: JobId) -> str:
    """Return the file that PBS itself writes; in a folder it names the file after the job."""
    path = job.text("Output_Path").partition(":")[2]
    return f"{path}{job_id.text}.OU" if path.endswith("/") else path
