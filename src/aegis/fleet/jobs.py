"""The jobs of this user: found by handle, id or part of one, on this machine or at the far end of ssh."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aegis.decoding import from_json
from aegis.errors import NotFoundError
from aegis.fleet.watch import Policy, Watcher
from aegis.runs import (
    ENDED,
    Manifest,
    RunDir,
    find_runs,
    index_folder,
    index_handles,
    job_of,
    known_runs,
    select,
    several,
    slug,
    unknown_job,
)
from aegis.schedulers.base import JobStatus, SchedulerUnavailable
from aegis.schedulers.transport import Here

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from aegis.fleet.status import JobView
    from aegis.schedulers.base import Scheduler
    from aegis.schedulers.transport import Transport

LOCAL = "local"
SUBMITTERS = {"slurm": "sbatch", "pbs": "qsub"}  # a scheduler is where its submit command is
IDS = {
    "slurm": re.compile(r"\d+(_\d+)?(\+\d+)?", re.ASCII),
    "pbs": re.compile(r"\d+(\[\d*\])?(\.[A-Za-z0-9][\w.-]*)?(\+\d+)?", re.ASCII),
}
RECENT_SECONDS = 2.0  # so long a list of all jobs is good enough to know which of them live
SUFFIX = "-vec-inf"  # of the names of vec-inf's jobs

LOOK = 'for each in "$@"; do command -v "$each" >/dev/null && echo "$each"; done; true'
# All manifests in one go, each after a character that no JSON has (RFC 7464).
MANIFESTS = r"""shopt -s nullglob
files=("${AEGIS_STATE_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/aegis}"/jobs/*/*.json)
[ ${#files[@]} -eq 0 ] || printf '%s\0' "${files[@]}" | xargs -0 awk 'FNR == 1 { printf "\036" } 1'"""
SEPARATOR = "\x1e"


class Jobs:
    """The jobs of this user, and the ways to their schedulers.

    Args:
        environ: of this process: where its state lies.
        transport: the machine that the jobs were submitted from (default: this one).
        policy: how often a scheduler is asked.
        schedulers: known ones by name; others are made when they are needed.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        transport: Transport | None = None,
        *,
        policy: Policy | None = None,
        schedulers: Mapping[str, Scheduler] | None = None,
    ) -> None:
        self.environ = environ
        self.transport: Transport = transport or Here(environ)
        self.policy = policy or Policy()
        self.is_here = isinstance(self.transport, Here)
        self._schedulers = dict(schedulers or {})
        self._watchers: dict[str, Watcher] = {}
        self._listed: tuple[float, list[Manifest]] | None = None
        self._present: set[str] | None = None

    # -- finding

    def find(self, text: str) -> Manifest:
        """Return the job that a text means: a handle, an id, or enough of one.

        Raises:
            NotFoundError: no job is meant, or more than one.
            SchedulerUnavailable: it is not among the jobs of aegis, and the scheduler cannot be asked.
        """
        found = self.find_all(text)
        if len(found) > 1:
            raise several(text, [manifest.job for manifest in found])
        return found[0]

    def find_all(self, text: str) -> list[Manifest]:
        """Return the job that a text means, or serves the service of that name; of several components, all of them.

        Raises:
            NotFoundError: no job is meant, or more than one.
            SchedulerUnavailable: it is not among the jobs of aegis, and the scheduler cannot be asked.
        """
        found = self._indexed(text)
        if found:
            return found
        if current := self.current(text):
            return [current]
        if stranger := self._stranger(text):
            return [stranger]
        known = index_handles(self.environ) if self.is_here else [each.job for each in self.all()]
        raise unknown_job(text, known)

    def of_service(self, name: str) -> list[Manifest]:
        """Return the jobs of a service, oldest first."""
        return [manifest for manifest in self.all() if manifest.service == name]

    def current(self, service: str) -> Manifest | None:
        """Return the job of a service that serves: the newest that is READY, else the newest that lives, else the newest."""
        every = self.of_service(service)
        live = [manifest for manifest in every if not is_final(manifest)] or every[-1:]
        if len(live) < 2:  # noqa: PLR2004 - nothing to choose from
            return live[0] if live else None
        from aegis.fleet.status import views  # noqa: PLC0415 - start-up time

        states = [each.model_status for each in views(self, live, RECENT_SECONDS, ask_servers=False)]
        ranks = [(state == "READY", state not in ENDED, number) for number, state in enumerate(states)]
        return live[max(ranks)[2]]

    def all(self) -> list[Manifest]:
        """Return every job of this user that aegis knows, oldest first."""
        found = self._all_here() if self.is_here else self._all_there()
        found.sort(key=lambda manifest: manifest.created)
        self._listed = time.monotonic(), found
        return found

    def components(self, handle: str) -> list[Manifest]:
        """Return what aegis knows of a whole job: a manifest per component."""
        return self._indexed(job_of(handle))

    def reload(self, manifest: Manifest) -> Manifest:
        """Return the manifest as it is now; the old one where it cannot be read."""
        if not manifest.run_dir:
            return manifest
        try:
            content = self.transport.read(str(run_of(manifest).manifest))
            return from_json(content, Manifest)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, SchedulerUnavailable):
            return manifest

    # -- asking

    def scheduler(self, handle: str) -> Scheduler:
        """Return the scheduler of a job."""
        name = handle.partition("://")[0]
        if name not in self._schedulers:
            self._schedulers[name] = scheduler_for(name, self.transport, self.transport.environ)
        return self._schedulers[name]

    def states(self, handles: Collection[str], max_age: float = 0.0) -> dict[str, JobStatus]:
        """Return what each scheduler says of its jobs, asked once, or not at all where an answer is young enough.

        A job that its scheduler does not know is left out. A scheduler that does not answer leaves its last words
        standing, with their age.
        """
        found: dict[str, JobStatus] = {}
        by_scheduler: dict[str, list[str]] = {}
        for handle in handles:
            by_scheduler.setdefault(handle.partition("://")[0], []).append(handle)
        for name, group in by_scheduler.items():
            if name == LOCAL:
                if self.is_here:
                    found |= self.scheduler(group[0]).query(group)
            elif name in SUBMITTERS or name in self._schedulers:
                found |= self._watcher(name).states(group, max_age)
        return found

    def silence(self, handle: str) -> str:
        """Return why the scheduler of a job did not answer when it was asked last; nothing where it did."""
        watcher = self._watchers.get(handle.partition("://")[0])
        return watcher.problem if watcher else ""

    def views(self, manifests: Sequence[Manifest], max_age: float = 0.0) -> list[JobView]:
        """Return what is true of each job, asking schedulers once and all servers at once; close what has ended."""
        from aegis.fleet.status import views  # noqa: PLC0415 - start-up time

        return views(self, manifests, max_age)

    def present(self, name: str) -> bool:
        """Tell whether a scheduler is here (or there, at the far end)."""
        if self._present is None:
            if isinstance(self.transport, Here):
                path = self.environ.get("PATH", os.defpath).split(os.pathsep)
                here = {
                    command
                    for command in SUBMITTERS.values()
                    if any(os.access(os.path.join(folder, command), os.X_OK) for folder in path)  # noqa: PTH118 - text
                }
            else:
                here = set(
                    self.transport.run(["bash", "-c", LOOK, "aegis", *SUBMITTERS.values()]).out.split()
                )
            self._present = {name for name, command in SUBMITTERS.items() if command in here}
        return name in self._present or (name == LOCAL and self.is_here)

    # -- where they come from

    def _indexed(self, text: str) -> list[Manifest]:
        if not self.is_here:
            known = {manifest.job: manifest for manifest in self.all()}
            return [known[handle] for handle in select(text, known)]
        return _manifests(find_runs(text, self.environ))

    def _all_here(self) -> list[Manifest]:
        return _manifests(known_runs(self.environ))

    def _all_there(self) -> list[Manifest]:
        found = []
        for text in self.transport.run(["bash", "-c", MANIFESTS]).out.split(SEPARATOR):
            with contextlib.suppress(msgspec.DecodeError):
                found.append(from_json(text, Manifest))
        return found

    def _stranger(self, text: str) -> Manifest | None:
        """Return a manifest for a job that only a scheduler knows.

        Raises:
            SchedulerUnavailable: it does not answer.
        """
        scheme, given, job_id = text.rpartition("://")
        for name, form in IDS.items():
            if (given and scheme != name) or not form.fullmatch(job_id) or not self.present(name):
                continue
            handle = f"{name}://{job_id}"
            status = self.states([handle]).get(handle)
            if problem := self.silence(handle):
                raise SchedulerUnavailable(
                    f"`{text}` is no job of aegis, and {name} does not answer: {problem}",
                    hint="try again later",
                )
            if status is not None:
                return _of_stranger(handle, status)
        return None

    def _watcher(self, name: str) -> Watcher:
        if name not in self._watchers:
            where = "" if self.is_here else f"@{slug(self.transport.name)}"
            file = index_folder(self.environ).parent / f"answers.{name}{where}.json"
            self._watchers[name] = Watcher(
                lambda handles: self.scheduler(f"{name}://").query(handles),
                file,
                lambda: self._live(name),
                self.policy,
            )
        return self._watchers[name]

    def _live(self, name: str) -> list[str]:
        """Return the jobs of a scheduler that are not known to have ended."""
        if self._listed and time.monotonic() - self._listed[0] < RECENT_SECONDS:
            listed = self._listed[1]
        else:
            listed = self.all()
        return [each.job for each in listed if each.job.startswith(f"{name}://") and not is_final(each)]


def scheduler_for(name: str | None, transport: Transport, environ: Mapping[str, str]) -> Scheduler:
    """Return the scheduler of that name, at the end of a transport."""
    if name == "slurm":
        from aegis.schedulers.slurm import Slurm  # noqa: PLC0415 - only the one that is used

        return Slurm(transport, environ)
    if name == "pbs":
        from aegis.schedulers.pbs import Pbs  # noqa: PLC0415 - as above

        return Pbs(transport, environ)
    from aegis.schedulers.local import Local  # noqa: PLC0415 - as above

    return Local(environ)


def is_final(manifest: Manifest) -> bool:
    """Tell whether a manifest says all that will ever be known: nobody needs to be asked."""
    return manifest.state in ENDED and (manifest.accounted or manifest.job.startswith(f"{LOCAL}://"))


def run_of(manifest: Manifest) -> RunDir:
    """Return the run directory of a job."""
    return RunDir.at(Path(manifest.run_dir))


def _manifests(runs: Mapping[str, RunDir]) -> list[Manifest]:
    """Return the manifests of runs; where one cannot be read, what the index knows of the job stands for it."""
    found = []
    for handle, run in runs.items():
        try:
            found.append(run.read_manifest())
        except NotFoundError:
            with contextlib.suppress(OSError):  # else it has none, and nothing is known
                made = run.manifest.stat().st_mtime
                models = [run.stem.partition(f".{handle.partition('://')[2]}")[0]]
                found.append(Manifest(job=handle, name=run.stem, models=models, run_dir="", created=made))
    return found


def _of_stranger(handle: str, status: JobStatus) -> Manifest:
    name = status.name or handle.partition("://")[2]
    return Manifest(
        job=handle,
        name=name,
        models=[name.removesuffix(SUFFIX)],
        run_dir="",
        created=status.submitted or status.started or 0.0,
        ended=status.ended,
        exit_code=status.exit_code,
        walltime=status.walltime,
    )
