"""Note the end of a job in its manifest, and take away what a head that was killed left behind."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

from aegis.fleet.jobs import run_of
from aegis.runs import ENDED, job_of
from aegis.schedulers.base import SchedulerUnavailable

if TYPE_CHECKING:
    from aegis.fleet.jobs import Jobs
    from aegis.fleet.verdict import Verdict
    from aegis.runs import Manifest
    from aegis.schedulers.base import JobStatus

# $1 manifest, $2 endpoints file. One that is newer belongs to a later job: a manifest is written after each change of its own.
CLEAN = """[ -z "$2" ] || [ "$2" -nt "$1" ] || rm -f -- "$2"
shift 2
rm -f -- "$@\""""


def close(jobs: Jobs, manifest: Manifest, verdict: Verdict, status: JobStatus | None) -> None:
    """Note a final verdict, and remove secrets and the list of servers that are dead.

    Where that cannot be written, the next one who looks does it.
    """
    if not manifest.run_dir:
        return
    run, killed = run_of(manifest), manifest.state not in ENDED
    useless = [str(run.secrets), str(run.token)]
    if manifest.secrets_file and not _is_shared(jobs, manifest):
        useless.append(manifest.secrets_file)
    endpoints = (manifest.endpoints_file or "") if killed else ""  # else the head has removed it
    closed = msgspec.structs.replace(
        manifest,
        state=verdict.state,
        reason=verdict.reason,
        ended=manifest.ended or (status.ended if status else None) or time.time(),
        base_url=None,
        gateways=[],
        accounted=True,
        exit_code=status.exit_code if status and status.exit_code is not None else manifest.exit_code,
        node_list=status.nodes if status else "",
        log=status.log if status and manifest.state == "PENDING" else "",
    )
    text = msgspec.json.format(msgspec.json.encode(closed), indent=2).decode()
    with contextlib.suppress(OSError, SchedulerUnavailable):
        jobs.transport.run(["bash", "-c", CLEAN, "aegis", str(run.manifest), endpoints, *useless])
        jobs.transport.write(str(run.manifest), text + "\n")


def _is_shared(jobs: Jobs, manifest: Manifest) -> bool:
    """Tell whether another component of the job may still need the secrets."""
    if job_of(manifest.job) == manifest.job:
        return False
    others = jobs.components(manifest.job)
    return any(each.state not in ENDED for each in others if each.job != manifest.job)
