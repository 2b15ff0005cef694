"""Where a job, its servers and its scheduler write, and what stands there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aegis.errors import NotFoundError, SiteError
from aegis.fleet.jobs import is_final, run_of
from aegis.fleet.verdict import ended_with
from aegis.schedulers.base import last_error
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from aegis.fleet.jobs import Jobs
    from aegis.runs import Manifest
    from aegis.schedulers.base import JobStatus

NAMES = 'cd -- "$1" 2>/dev/null && ls -1'
SCHEDULER_SECONDS = 10.0  # its word on where it writes may be so old


def log_path(jobs: Jobs, manifest: Manifest, instance: str | None) -> str:
    """Return where a job or an instance writes; nothing for a job that aegis did not start.

    Raises:
        NotFoundError: there is no such instance.
    """
    if not manifest.run_dir:
        if instance:
            raise NotFoundError(f"{manifest.job} is no job of aegis: it has no instances")
        return ""
    run = run_of(manifest)
    if instance is None:
        return str(run.err)
    names = jobs.transport.run(["bash", "-c", NAMES, "aegis", str(run.instances)]).out.splitlines()
    logs = [os.path.splitext(name)[0] for name in names if name.endswith(".log")]  # noqa: PTH122 - text
    if instance in logs:
        return str(run.instances / f"{instance}.log")
    hint = did_you_mean(instance, logs) or (f"one of {', '.join(logs)}" if logs else "none has started yet")
    raise NotFoundError(f"there is no log of an instance `{instance}`", hint=hint)


def scheduler_log(jobs: Jobs, manifest: Manifest, own: str) -> str:
    """Return the file that the scheduler itself wrote, where there is one besides the job's own."""
    known = None if is_final(manifest) else jobs.states([manifest.job], SCHEDULER_SECONDS).get(manifest.job)
    path = manifest.log or (known.log if known else "")
    return "" if path == own else path


def log_of(jobs: Jobs, manifest: Manifest, instance: str | None = None) -> str:
    """Return what a job or an instance wrote; of a job that never began, what the scheduler did.

    Raises:
        NotFoundError: there is no such instance.
    """
    path = log_path(jobs, manifest, instance)
    text = _read(jobs, path)
    if not text and not instance and (other := scheduler_log(jobs, manifest, path)):
        return _read(jobs, other)
    return text


def last_words(jobs: Jobs, manifest: Manifest, status: JobStatus) -> tuple[str, str]:
    """Return why a job failed that could not note it, and its log, or else the scheduler's: the first that is not empty."""
    for path in filter(None, (log_path(jobs, manifest, None), status.log)):
        try:
            text = _read(jobs, path).strip()
        except (OSError, SiteError):
            continue
        if text:
            last = (
                text.splitlines()[-1] if manifest.state == "PENDING" else ""
            )  # it never came to speak itself
            said = last_error(text) or (last and f"{ended_with(status)}: {last}")
            return (said if status.state == "FAILED" else ""), path
    return "", ""


def _read(jobs: Jobs, path: str) -> str:
    try:
        return jobs.transport.read(path).decode(errors="replace")
    except FileNotFoundError:
        return ""
