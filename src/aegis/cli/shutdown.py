"""`aegis shutdown`: stop the servers of one job, and only those."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aegis.cli.jobs import open_jobs, remote_option, say
from aegis.errors import NotFoundError
from aegis.runs import ENDED
from aegis.spec.deployment import ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.fleet.jobs import Jobs
    from aegis.runs import Manifest


@click.command()
@click.argument("handle", required=False)
@click.option("--job-id", metavar="ID", help="The job to end, where HANDLE is not given.")
@click.option(
    "--endpoints-file",
    metavar="FILE",
    help=f"Stop the servers of the job that keeps this file (default: {ENDPOINTS}, if no job is named).",
)
@click.option("--no-wait", is_flag=True, help="Do not wait until every process is gone.")
@click.option(
    "--drain",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Let servers finish what they have, at most so long.",
)
@click.option(
    "--timeout", default=120.0, show_default=True, type=click.FloatRange(min=0), help="Seconds to wait."
)
@remote_option
def command(
    *,
    handle: str | None,
    job_id: str | None,
    endpoints_file: str | None,
    no_wait: bool,
    drain: float,
    timeout: float,
    remote: str | None,
) -> None:
    """Stop the servers of a job, and end it. No other process is touched.

    HANDLE may also be the name of a service: then all its jobs end, and one that waits to take over is cancelled.
    It may be a component of a job (1234+1): then only its servers are stopped, and its nodes given back where the
    scheduler can do that. With --endpoints-file alone only the servers are stopped; the job ends as they do.
    """
    from msgspec.structs import replace  # noqa: PLC0415 - start-up time

    from aegis.fleet.stop import Wish, stop  # noqa: PLC0415 - start-up time

    if None not in (handle, job_id) and handle != job_id:
        raise click.UsageError("HANDLE and --job-id name two jobs")
    named = job_id if handle is None else handle  # an empty name means no job, not the default
    wish = Wish(wait=not no_wait, drain=drain, timeout=timeout)
    with open_jobs(remote) as jobs:
        meant = [] if named is None else jobs.find_all(named)
        if endpoints_file or named is None:
            kept = _keeper(jobs, endpoints_file or ENDPOINTS, optional=bool(meant))
            if kept and kept.job not in {each.job for each in meant}:
                stop(jobs, [kept], say, replace(wish, cancel=False))
        if meant:
            was_live = meant[0].state not in ENDED
            stop(jobs, meant, say, wish)
            for other in _others(jobs, meant[0], named) if was_live else ():
                stop(jobs, [other], say, wish)


def _others(jobs: Jobs, stopped: Manifest, named: str | None) -> Iterator[Manifest]:
    """Yield what else goes with a job of a service: who was to take over from it, or all jobs of the service that is named."""
    from aegis.fleet.jobs import is_final  # noqa: PLC0415 - start-up time

    if not stopped.service:
        return
    if stopped.service == named:
        yield from (each for each in jobs.of_service(named) if each.job != stopped.job and not is_final(each))
        return
    seen = {stopped.job}
    while (successor := jobs.reload(stopped).successor) and successor not in seen:
        seen.add(successor)
        stopped = jobs.find(successor)
        if not is_final(stopped):
            yield stopped


def _keeper(jobs: Jobs, file: str, *, optional: bool) -> Manifest | None:
    """Return the job that keeps a file; nothing where another one is named and this one has ended.

    Raises:
        NotFoundError: no running job keeps it.
    """
    from aegis.fleet.stop import keeper  # noqa: PLC0415 - start-up time

    try:
        return keeper(jobs, file)
    except NotFoundError as error:
        if not optional:
            raise
        say(error.message)
        return None
