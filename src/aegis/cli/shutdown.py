"""`aegis shutdown`: stop the servers of one job, and only those."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aegis.errors import ConfigError, DeadlineError, NotFoundError

if TYPE_CHECKING:
    from aegis.runs import RunDir

DEFAULT_ENDPOINTS = "aegis_endpoints.txt"


@click.command()
@click.argument("handle", required=False)
@click.option("--job-id", metavar="ID", help="The job, where HANDLE is not given.")
@click.option(
    "--endpoints-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"The job that keeps this file (default: {DEFAULT_ENDPOINTS}, if no job is named).",
)
@click.option("--no-wait", is_flag=True, help="Do not wait until every process is gone.")
@click.option(
    "--timeout", default=120.0, show_default=True, type=click.FloatRange(min=0), help="Seconds to wait."
)
def command(
    handle: str | None, job_id: str | None, endpoints_file: Path | None, no_wait: bool, timeout: float
) -> None:
    """Stop the servers of a job, and end it. No other process is touched."""
    from aegis.runs import ENDED, close_abandoned, find_run  # noqa: PLC0415 - start-up time
    from aegis.schedulers.local import Local  # noqa: PLC0415 - start-up time

    named = handle or job_id
    if named and endpoints_file:
        raise ConfigError("a job and an endpoints file are both given", hint="name one of them")
    run = find_run(named, os.environ) if named else _run_of(endpoints_file or Path(DEFAULT_ENDPOINTS))
    job = run.read_manifest().job
    scheduler = Local(os.environ)
    before = scheduler.query([job])[job]
    if before.state in ENDED:
        close_abandoned(run, before.reason)
        click.echo(f"{job} has ended already: {before.reason or before.state}", err=True)
        return
    scheduler.cancel(job)
    if not no_wait:
        _wait(job, timeout)
    click.echo(f"{job} is shut down" if not no_wait else f"{job} is shutting down", err=True)


def _run_of(file: Path) -> RunDir:
    """Return the run that keeps an endpoints file.

    Raises:
        NotFoundError: no live job does.
    """
    from aegis.fleet.status import all_runs  # noqa: PLC0415 - start-up time
    from aegis.runs import ENDED  # noqa: PLC0415 - start-up time
    from aegis.schedulers.local import status_of  # noqa: PLC0415 - start-up time

    path = os.path.abspath(file)  # noqa: PTH100 - links stay as the job wrote them
    for run in reversed(all_runs(os.environ)):
        try:
            manifest = run.read_manifest()
        except NotFoundError:
            continue
        if manifest.endpoints_file == path and status_of(manifest).state not in ENDED:
            return run
    raise NotFoundError(f"no running job keeps {path}", hint="`aegis status` lists the jobs")


def _wait(job: str, timeout: float) -> None:
    import time  # noqa: PLC0415 - start-up time

    from aegis.runs import ENDED  # noqa: PLC0415 - start-up time
    from aegis.schedulers.local import Local  # noqa: PLC0415 - start-up time

    scheduler = Local(os.environ)
    deadline = time.monotonic() + timeout
    while scheduler.query([job])[job].state not in ENDED:
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"{job} has not ended after {timeout:.0f} s", hint="`aegis status` shows what is left"
            )
        time.sleep(0.1)
