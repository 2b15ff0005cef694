"""This machine as a scheduler: a job is a process in the background, and its manifest is the accounting."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aegis.errors import AegisError, NotFoundError, SiteError
from aegis.files import write_atomically
from aegis.processes import is_alive, signal_process, start_of
from aegis.runs import ENDED, Manifest, RunDir, endpoints_path, find_run, known_runs, register
from aegis.schedulers.base import (
    JOB_VARIABLE,
    RUN_DIR_VARIABLE,
    JobLogs,
    JobRequest,
    JobStatus,
    SchedulerInfo,
    Submission,
    last_error,
)
from aegis.schedulers.script import script as job_script
from aegis.spec.walltime import parse_walltime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 letters, none that looks like another
ID_LENGTH = 6
GRACE_SECONDS = 5


def new_handle() -> str:
    """Return a handle that no job has."""
    return "local://" + "".join(ALPHABET[byte % len(ALPHABET)] for byte in os.urandom(ID_LENGTH))


class Local:
    """Runs jobs on this machine."""

    name = "local"

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def describe(self) -> SchedulerInfo:
        """Tell that this machine is here."""
        return SchedulerInfo(self.name, available=True, detail=f"this machine ({os.uname().nodename})")

    def render(self, request: JobRequest) -> str:
        """Return the job script."""
        return job_script(request)

    def submit(self, request: JobRequest, script: str, secrets: Mapping[str, str]) -> Submission:
        """Start the job in the background and return its handle.

        Raises:
            AegisError: the run directory cannot be written, or bash is missing.
        """
        handle = new_handle()
        component = request.components[0]
        resources = component.resources
        run = RunDir.make(Path(component.folder, f"{component.stem}.{handle.partition('://')[2]}"))
        manifest = Manifest(
            job=handle,
            name=request.name,
            models=list(request.models),
            run_dir=str(run.path),
            created=time.time(),
            walltime=parse_walltime(resources.walltime) if resources.walltime else None,
            host=os.uname().nodename,
            nodes=resources.nodes,
            endpoints_file=endpoints_path(component.endpoints_file, handle, str(run.path)),
            service=request.service,
            predecessor=request.after.job if request.after else None,
        )
        process = None
        try:
            write_atomically(run.script, script, 0o755)
            run.write_manifest(manifest)
            with run.out.open("ab") as out, run.err.open("ab") as err:
                process = subprocess.Popen(
                    ["bash", str(run.script)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,  # it outlives this terminal
                    env={**self.environ, **secrets, JOB_VARIABLE: handle, RUN_DIR_VARIABLE: str(run.path)},
                )
            manifest.pid, manifest.pid_started = process.pid, start_of(process.pid)
            _note_process(run, manifest)
            register(handle, run, self.environ)
        except OSError as error:
            if process:
                _end(process)  # nobody would find it
            run.remove()
            raise AegisError(
                f"the job cannot be started: {error.filename or run.path}: {error.strerror}",
                hint="choose another directory with --log-dir",
            ) from None
        # A caller that lives on does not leave a zombie.
        threading.Thread(target=process.wait, daemon=True).start()
        return Submission(handle)

    def query(self, handles: Sequence[str]) -> dict[str, JobStatus]:
        """Return the state of each job: what its manifest says, unless its process is gone."""
        wanted = set(handles)
        found = {}
        for run in known_runs(self.environ).values():
            try:
                manifest = run.read_manifest()
            except NotFoundError:
                continue
            if manifest.job in wanted:
                found[manifest.job] = status_of(manifest)
        return found

    def cancel(self, handle: str) -> None:
        """Ask the head of the job to stop its servers and end.

        Raises:
            NotFoundError: there is no such job.
            SiteError: it runs on another machine, or belongs to another user.
        """
        manifest = find_run(handle, self.environ).read_manifest()
        if manifest.state in ENDED:
            return
        if manifest.host != os.uname().nodename:
            raise SiteError(f"job {handle} runs on {manifest.host}", hint="cancel it there")
        if not manifest.pid or not manifest.pid_started:
            return  # it ended before it was noted
        try:
            signal_process(manifest.pid, manifest.pid_started, signal.SIGTERM)
        except PermissionError:
            raise SiteError(f"job {handle} belongs to another user") from None

    def logs(self, handle: str) -> JobLogs:
        """Return where a job writes.

        Raises:
            NotFoundError: there is no such job.
        """
        run = find_run(handle, self.environ)
        return JobLogs(str(run.out), str(run.err))


def status_of(manifest: Manifest) -> JobStatus:
    """Return the state of a local job; a head that vanished without a word has failed."""
    if manifest.state in ENDED or is_alive(manifest.pid, manifest.pid_started):
        return JobStatus(state=manifest.state, reason=manifest.reason, exit_code=manifest.exit_code)
    if manifest.host != os.uname().nodename:
        return JobStatus(state="UNKNOWN", reason=f"it runs on {manifest.host}: ask there")
    with contextlib.suppress(NotFoundError):
        last = RunDir.at(Path(manifest.run_dir)).read_manifest()
        if last.state in ENDED:  # noted after the manifest was read, just before the process was looked for
            return JobStatus(state=last.state, reason=last.reason, exit_code=last.exit_code)
    said = _last_words(RunDir.at(Path(manifest.run_dir)).err) if manifest.state == "PENDING" else ""
    return JobStatus(
        state="FAILED", reason=said or "the head of the job was killed, or the machine restarted"
    )


def _last_words(log: Path) -> str:
    """Return the error that ended a job before it could note anything."""
    try:
        return last_error(log.read_text(errors="replace"))
    except OSError:
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a job that was just started."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _note_process(run: RunDir, manifest: Manifest) -> None:
    """Note the process in the manifest, unless the job itself has written there already."""
    if run.read_manifest().pid is None:
        run.write_manifest(manifest)
