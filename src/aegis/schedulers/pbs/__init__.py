"""PBS Pro and OpenPBS: qsub, qstat, qdel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from aegis.decoding import from_json
from aegis.errors import AegisError, NotFoundError, SiteError
from aegis.runs import ENDED, Manifest, index_link
from aegis.schedulers.base import (
    PASSED,
    JobLogs,
    JobRequest,
    JobStatus,
    SchedulerInfo,
    SchedulerUnavailable,
    Submission,
)
from aegis.schedulers.pbs.attributes import Job, log_of
from aegis.schedulers.pbs.codes import ENDING, FINISHED, trouble
from aegis.schedulers.pbs.directives import job_shell, output_folder
from aegis.schedulers.pbs.queue import UTC, Answer, JobId, answer, qdel_argv, qstat_argv, qsub_argv, submitted
from aegis.schedulers.pbs.words import status
from aegis.schedulers.record import leave_secrets, record
from aegis.schedulers.script import script as job_script

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aegis.schedulers.transport import Transport

HERE_TIMEOUT = 10.0  # seconds
# Of each link of the index: where it leads, and the manifest there.
MANIFESTS = """for link; do
  folder=$(readlink -- "$link") && printf '%s\\0' "$folder" && cat -- "$folder/${folder##*/}.json" 2>/dev/null
  printf '\\0'
done"""
DROPPED = (
    "PBS accepted it and dropped it before it began: rejected by every destination of the routing queue{queue} "
    "(no queue behind it takes so many nodes or such a walltime), or deleted"
)


class Pbs:
    """Submits jobs to a PBS server and follows them there."""

    name = "pbs"

    def __init__(self, transport: Transport, environ: Mapping[str, str]) -> None:
        self.transport = transport
        self.environ = environ

    def describe(self) -> SchedulerInfo:
        """Tell which release this is; whether its server answers shows at the first question to it."""
        try:
            done = self.transport.run(["qstat", "--version"], timeout=HERE_TIMEOUT)
        except SiteError as error:
            return SchedulerInfo(self.name, available=False, detail=error.message)
        release = (done.out or done.err).strip().rpartition("=")[2].strip()
        return SchedulerInfo(
            self.name, available=done.code == 0, detail=f"PBS {release} on {self.transport.name}"
        )

    def render(self, request: JobRequest) -> str:
        """Return the job script.

        Raises:
            ConfigError: PBS does not have what is asked for, or cannot be told a value.
        """
        return job_script(request, job_shell(request))

    def submit(self, request: JobRequest, script: str, secrets: Mapping[str, str]) -> Submission:
        """Submit a script and record the job.

        Raises:
            SiteError: PBS refuses.
            SchedulerUnavailable: it does not answer.
            AegisError: the log directory cannot be written.
        """
        private = self._prepare(request, secrets)
        passed = {name: self.environ[name] for name in PASSED if self.environ.get(name)} | private
        job, said = self._accepted(script, passed, private.values())
        handle = f"pbs://{job.text}"
        handles = {handle: job.short}
        if len(request.components) > 1:
            handles = {f"{handle}+{k}": f"{job.short}+{k}" for k in range(len(request.components))}
        problems = record(
            request,
            script,
            handles,
            self.transport,
            self.environ,
            secrets_file=next(iter(private.values()), None),
        )
        return Submission(handle, (*said, *problems))

    def query(self, handles: Sequence[str]) -> dict[str, JobStatus]:
        """Return the state of each job, in one question; a component has the state of its job.

        Raises:
            SchedulerUnavailable: the server does not answer.
        """
        ids = {handle: job for handle in handles if (job := JobId.parse(handle))}
        if not ids:
            return {}
        said = self._ask(ids.values())
        found = {}
        gone = []
        for handle, job in ids.items():
            if known := said.find(job):
                found[handle] = status(*known)
            elif said.disowns(job):
                gone.append(handle)
            elif any(each.names(job) for each in said.foreign):
                found[handle] = JobStatus(state="UNKNOWN", reason=f"there is no PBS server {job.server} here")
            else:
                found[handle] = JobStatus(state="UNKNOWN", reason=said.complaint or "PBS says nothing of it")
        return found | self._forgotten(gone)

    def cancel(self, handle: str) -> None:
        """Ask PBS to end a job; it may run on for some seconds.

        Raises:
            NotFoundError: PBS does not know it.
            SiteError: it refuses, or this is one component of a job.
            SchedulerUnavailable: it does not answer.
        """
        job = self._id(handle)
        if job.component is not None:
            raise SiteError(
                f"PBS cannot end one component of a job: {handle}",
                hint=f"its servers are stopped through its registry; pbs://{job.text} is the whole job",
            )
        done = self.transport.run(qdel_argv(job))
        if done.code not in {0, FINISHED, ENDING}:
            raise trouble("qdel", f"PBS does not end job {job.text}", done)

    def logs(self, handle: str) -> JobLogs:
        """Return where a job writes: in its run directory, or where PBS puts the output of a job that has none.

        Raises:
            NotFoundError: there is no such job.
            SchedulerUnavailable: it is not in the index, and PBS does not answer.
        """
        job = self._id(handle)
        for _, folder, _ in self._index([handle]):
            stem = f"{folder}/{folder.rpartition('/')[2]}"
            return JobLogs(f"{stem}.out", f"{stem}.err")
        known = self._ask([job]).find(job)
        if known is None:
            raise NotFoundError(f"PBS knows no job {job.text}")
        path = log_of(Job(known[1]), known[0])
        return JobLogs(path, path)

    # -- how

    def _prepare(self, request: JobRequest, secrets: Mapping[str, str]) -> dict[str, str]:
        """Make the folder that PBS writes to, which would lose the output without it; return where secrets lie."""
        folder = output_folder(request)
        done = self.transport.run(["mkdir", "-p", "--", folder])
        if done.code:
            raise AegisError(
                f"the log directory cannot be made: {done.err.strip()}",
                hint="choose another with --log-dir",
            )
        try:
            return leave_secrets(request, secrets, self.transport)
        except OSError as error:
            raise AegisError(
                f"the secrets of the job cannot be written: {error.strerror or error}",
                hint="choose another directory with --log-dir",
            ) from None

    def _accepted(
        self, script: str, passed: Mapping[str, str], private: Iterable[str]
    ) -> tuple[JobId, list[str]]:
        """Submit a script; return the job's id, and what was said besides. A refused job leaves no secrets."""
        try:
            done = self.transport.run(qsub_argv(passed), text=script, environ=passed, repeatable=False)
        except SchedulerUnavailable as error:
            raise SchedulerUnavailable(
                error.message,
                hint="the job may have been accepted: look with qstat before you submit it again",
            ) from None
        job = submitted(done.out) if done.code == 0 else None
        if job:
            return job, [line.strip() for line in done.err.splitlines() if line.strip()]
        for file in private:
            self.transport.remove(file)
        if done.code == 0:
            raise SiteError(f"qsub printed no job id: {done.out.strip() or done.err.strip() or 'nothing'}")
        raise trouble("qsub", "PBS does not take the job", done)

    def _ask(self, ids: Iterable[JobId]) -> Answer:
        done = self.transport.run(qstat_argv(ids), environ=UTC)
        said = answer(done)
        if said is None or not (said.jobs or said.unknown or said.foreign or said.complaint):
            error = trouble("qstat", "PBS does not answer", done)
            raise error if isinstance(error, SchedulerUnavailable) else SchedulerUnavailable(error.message)
        return said

    def _forgotten(self, handles: Sequence[str]) -> dict[str, JobStatus]:
        """Return what is known of jobs that PBS accepted once and does not know any more."""
        found = {}
        for handle, _, text in self._index(handles):
            try:
                manifest = from_json(text, Manifest)
            except msgspec.DecodeError:
                continue
            found[handle] = _last_known(manifest)
        return found

    def _index(self, handles: Sequence[str]) -> list[tuple[str, str, str]]:
        """Return the run directory of each job that the index of this user has, and its manifest."""
        if not handles:
            return []
        home = self.transport.home()
        links = [index_link(handle, self.environ, home) for handle in handles]
        parts = self.transport.run(["bash", "-c", MANIFESTS, "aegis", *links]).out.split("\0")
        found = []
        for handle in handles:
            folder = parts.pop(0) if parts else ""
            if folder:
                found.append((handle, folder, parts.pop(0) if parts else ""))
        return found

    @staticmethod
    def _id(handle: str) -> JobId:
        job = JobId.parse(handle)
        if job is None:
            raise NotFoundError(f"`{handle}` is no job of PBS")
        return job


def _last_known(manifest: Manifest) -> JobStatus:
    if manifest.state in ENDED:
        state, reason = manifest.state, manifest.reason
    elif manifest.pid:
        state, reason = "FAILED", "PBS does not know it any more, and it did not say how it ended"
    else:
        queue = f" {manifest.queue}" if manifest.queue else ""
        state, reason = "FAILED", DROPPED.format(queue=queue)
    return JobStatus(
        state=state,
        reason=reason,
        exit_code=manifest.exit_code,
        submitted=manifest.created or None,
        ended=manifest.ended,
        walltime=manifest.walltime,
        restarts=manifest.restarts,
        name=manifest.name,
    )
