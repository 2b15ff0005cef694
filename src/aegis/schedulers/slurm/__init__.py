"""Slurm: sbatch, squeue, sacct, scancel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.errors import NotFoundError, SiteError
from aegis.runs import index_link
from aegis.schedulers.base import (
    SECRET_NAMES,
    SECRETS_VARIABLE,
    JobLogs,
    JobRequest,
    JobStatus,
    SchedulerInfo,
    SchedulerUnavailable,
    Submission,
)
from aegis.schedulers.record import prepare, record
from aegis.schedulers.script import script as job_script
from aegis.schedulers.slurm.directives import foreign, job_shell, output_folder
from aegis.schedulers.slurm.judge import judge
from aegis.schedulers.slurm.queue import (
    ACCOUNTING_ENVIRON,
    CANCEL_ENVIRON,
    QUEUE_ENVIRON,
    SACCT,
    SQUEUE,
    JobId,
    Row,
    accepted,
    by_id,
    ids,
    rows,
    sacct_argv,
    squeue_argv,
    steps,
    steps_argv,
)
from aegis.schedulers.slurm.refusals import ENDED_ALREADY, LOOK, UNKNOWN_JOB, complaint, is_unsure, trouble
from aegis.schedulers.slurm.words import is_ended

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aegis.schedulers.transport import Done, Transport

HERE_TIMEOUT = 10.0  # seconds
NO_ACCOUNTING = "accounting storage is disabled"


class Slurm:
    """Submits jobs to Slurm and follows them there."""

    name = "slurm"

    def __init__(self, transport: Transport, environ: Mapping[str, str]) -> None:
        self.transport = transport
        self.environ = environ

    def describe(self) -> SchedulerInfo:
        """Tell which release this is; whether its controller answers shows at the first question to it."""
        try:
            done = self.transport.run(["sbatch", "--version"], timeout=HERE_TIMEOUT)
        except SiteError as error:
            return SchedulerInfo(self.name, available=False, detail=error.message)
        release = done.out.strip().rpartition(" ")[2]
        return SchedulerInfo(
            self.name, available=done.code == 0, detail=f"Slurm {release} on {self.transport.name}"
        )

    def render(self, request: JobRequest) -> str:
        """Return the job script.

        Raises:
            ConfigError: sbatch cannot be told a value.
        """
        return job_script(request, job_shell(request))

    def submit(self, request: JobRequest, script: str, secrets: Mapping[str, str]) -> Submission:
        """Submit a script and record the job.

        Raises:
            SiteError: Slurm refuses.
            SchedulerUnavailable: it does not answer.
            AegisError: the log directory cannot be written.
        """
        private = prepare(request, output_folder(request), secrets, self.transport)
        environ = dict.fromkeys(SECRET_NAMES, "") | foreign(script, self.environ) | private
        done = self._sbatch(script, environ, private.values())
        number = accepted(done.out)
        if number is None:
            said = done.out.strip() or done.err.strip() or "nothing"
            raise SiteError(f"sbatch printed no job id: {said}", hint=LOOK)
        handle = f"slurm://{number}"
        handles = {handle: number}
        if len(request.components) > 1:
            handles = {f"{handle}+{k}": f"{number}+{k}" for k in range(len(request.components))}
        problems = record(
            request, script, handles, self.transport, self.environ, secrets_file=private.get(SECRETS_VARIABLE)
        )
        warnings = [line.strip() for line in done.err.splitlines() if line.strip()]
        return Submission(handle, (*warnings, *problems))

    def query(self, handles: Sequence[str]) -> dict[str, JobStatus]:
        """Return the state of each job: all from one list of the queue, ended ones from accounting as well.

        Raises:
            SchedulerUnavailable: the controller does not answer.
        """
        wanted = ids(handles)
        if not wanted:
            return {}
        queue = self._queue()
        asked = [job for job in wanted.values() if job.text not in queue or is_ended(queue[job.text].word)]
        records, silence = self._accounting(asked)
        found = {handle: judge(job, queue, records, silence) for handle, job in wanted.items()}
        return {handle: each for handle, each in found.items() if each}

    def cancel(self, handle: str) -> None:
        """Ask Slurm to end a job, or one component of it; it may run on for some seconds.

        Slurm cannot end the first component without the others. While others live, it is sent SIGTERM where it serves, and its
        nodes stay with the job.

        Raises:
            NotFoundError: Slurm does not know it.
            SiteError: it refuses.
            SchedulerUnavailable: it does not answer.
        """
        job = self._id(handle)
        argv = ["scancel", job.text]
        if job.component == 0 and (others := self._others(job)):
            serving = steps(self.transport.run(steps_argv(job.number)).out, job.number)
            if not serving:
                raise SiteError(
                    f"Slurm cannot end the first component of job {job.number} without {', '.join(others)}",
                    hint=f"slurm://{job.number} is the whole job",
                )
            argv = ["scancel", "--signal=TERM", *serving]
        done = self.transport.run(argv, environ=CANCEL_ENVIRON)
        if done.code == 0 or UNKNOWN_JOB in done.err:  # it says 0 of a job that there never was
            if not self.query([handle]):
                raise NotFoundError(f"Slurm knows no job {job.text}")
        elif ENDED_ALREADY not in done.err:
            raise trouble("scancel", f"Slurm does not end job {job.text}", done)

    def logs(self, handle: str) -> JobLogs:
        """Return where a job writes: in its run directory, or where Slurm puts the output of a job that has none.

        Raises:
            NotFoundError: there is no such job.
            SchedulerUnavailable: it is not in the index, and Slurm does not answer.
        """
        job = self._id(handle)
        link = index_link(f"slurm://{job.text}", self.environ, self.transport.home())
        folder = self.transport.run(["readlink", "--", link]).out.removesuffix("\n")
        if folder:
            stem = f"{folder}/{folder.rpartition('/')[2]}"
            return JobLogs(f"{stem}.out", f"{stem}.err")
        row = self._queue().get(job.text)
        if row is None:
            raise NotFoundError(f"Slurm knows no job {job.text}")
        path = row.log or row.output
        return JobLogs(path, path)

    # -- how

    def _sbatch(self, script: str, environ: Mapping[str, str], private: Iterable[str]) -> Done:
        """Submit; the private files go, unless the job may need them."""
        kept = False
        try:
            done = self.transport.run(
                ["sbatch", "--parsable"], text=script, environ=environ, repeatable=False
            )
            kept = done.code == 0 or is_unsure(done)
        except SchedulerUnavailable as error:
            kept = True
            raise SchedulerUnavailable(error.message, hint=LOOK) from None
        finally:
            if not kept:
                for file in private:
                    self.transport.remove(file)
        if done.code:
            raise trouble("sbatch", "Slurm does not take the job", done)
        return done

    def _queue(self) -> dict[str, Row]:
        done = self.transport.run(squeue_argv(), environ=QUEUE_ENVIRON)
        if done.code:
            raise SchedulerUnavailable(
                f"Slurm does not answer: {complaint('squeue', done)}", hint="try again later"
            )
        return by_id(rows(done.out, SQUEUE))

    def _accounting(self, jobs: Iterable[JobId]) -> tuple[dict[str, Row], str]:
        """Return what accounting knows, and why it says nothing where it should."""
        jobs = list(jobs)
        if not jobs:
            return {}, ""
        try:
            done = self.transport.run(sacct_argv(jobs), environ=ACCOUNTING_ENVIRON)
        except SiteError as error:
            return {}, error.message
        if done.code:
            return {}, "" if NO_ACCOUNTING in done.err else complaint("sacct", done)
        return by_id(rows(done.out, SACCT)), ""

    def _others(self, job: JobId) -> list[str]:
        """Return the other components of a job that have not ended."""
        mine = f"{job.number}+"
        return [
            row.id
            for text, row in self._queue().items()
            if text == row.id and text.startswith(mine) and text != job.text and not is_ended(row.word)
        ]

    @staticmethod
    def _id(handle: str) -> JobId:
        job = JobId.parse(handle)
        if job is None:
            raise NotFoundError(f"{handle!r} is no job of Slurm")
        return job
