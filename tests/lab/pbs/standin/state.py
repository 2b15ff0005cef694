"""What the server knows, and keeps in its spool."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from .jobs import Job
from .placing import Chunk
from .wire import UNKNOWN_JOB, Settings

if TYPE_CHECKING:
    from pathlib import Path

RUNS = {"R", "E"}
NOT_OURS = 1  # an id of another server


class Refused(Exception):
    """The server says no."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(text)
        self.code, self.text = code, text


class State:
    """Jobs by sequence number, and the nodes that they have."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.site = Settings.load(spool)
        self.jobs: dict[str, Job] = {}
        self.next = self.site.first_id
        self._saved = ""
        for folder in ("jobs", "undelivered", "down"):
            (spool / folder).mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            kept = json.loads((spool / "state.json").read_text())
            known = {field.name for field in fields(Job)}
            self.next = kept["next"]
            for values in kept["jobs"]:
                job = Job(**{name: value for name, value in values.items() if name in known})
                self.jobs[job.sequence] = job

    def save(self) -> None:
        """Keep everything, so that the server may die at any time."""
        text = json.dumps({"next": self.next, "jobs": [asdict(job) for job in self.jobs.values()]})
        if text != self._saved:
            self._saved = text
            new = self.spool / "state.new"
            new.write_text(text)
            new.replace(self.spool / "state.json")

    @property
    def down(self) -> set[str]:
        """Nodes whose daemon does not answer."""
        return set(os.listdir(self.spool / "down"))  # noqa: PTH208 - read often

    def find(self, text: str) -> Job:
        """Return a job by its id.

        Raises:
            Refused: there is none, or it is of another server.
        """
        number, _, server = text.partition(".")
        if server and server != self.site.server and not self.site.server.startswith(f"{server}."):
            raise Refused(NOT_OURS, text)
        if number not in self.jobs:
            raise Refused(UNKNOWN_JOB, f"{number}.{self.site.server}")
        return self.jobs[number]

    def parts(self, job: Job) -> list[Job]:
        """Return the jobs of an array."""
        return [each for each in self.jobs.values() if each.number == job.number and each is not job]

    def folder(self, job: Job) -> Path:
        """Return where the daemon of this run of the job has its files."""
        return self.spool / "jobs" / f"{job.id(self.site)}.{job.run_count}"

    def used(self) -> dict[str, Chunk]:
        """Return what running jobs have of each node."""
        used: dict[str, Chunk] = {}
        for job in self.jobs.values():
            if job.state in RUNS:
                for node, chunk in zip(job.nodes, job.chunks(), strict=True):
                    before = used.get(node, Chunk(0, 0))
                    used[node] = Chunk(before.ncpus + chunk.ncpus, before.ngpus + chunk.ngpus)
        return used
