"""`aegis submit`: a deployment, or a model of the catalog, as a job."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.catalog_options import catalog_options
from aegis.cli.options import DeploymentCommand, deployment_options, flags_of
from aegis.cli.render import print_json
from aegis.cli.submitting import (
    print_submitted,
    resolve_wish,
    submission_options,
    submit_job,
    submitted_json,
    transport_to,
)

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=DeploymentCommand)
@click.argument("model_name", metavar="[MODEL]", required=False)
@deployment_options
@catalog_options
@submission_options
@click.option(
    "--successor-of",
    metavar="HANDLE|SERVICE",
    help="Submit the job that takes over from this one, where its nodes cannot (see docs/keep-alive.md).",
)
def command(
    *,
    model_name: str | None,
    successor_of: str | None,
    config: Path | None,
    no_environment: bool,
    remote: str | None,
    as_json: bool,
    dry_run: bool,
    force: bool,
    wait_timeout: float | None,
    **options: Any,
) -> None:
    """Submit a deployment as a job, and print its handle.

    MODEL is an entry of the catalog (`aegis list`); --config then names a catalog to use instead of the usual ones.
    With --wait, return when every server is healthy or given up, and print the endpoints; exit 1 if the job ends first.
    With --keep-alive the job submits its own successor and hands over to it, until --until; --service names them all.
    """
    if successor_of is not None:
        if remote or dry_run or model_name or config or flags_of(options):
            raise click.UsageError("--successor-of takes everything from that job: give nothing besides it")
        _succeed(successor_of, as_json=as_json)
        return
    with transport_to(remote) as transport:
        resolved = resolve_wish(
            model_name, config, options, transport=transport, no_environment=no_environment
        )
        done = submit_job(
            [resolved],
            transport,
            dry_run=dry_run,
            force=force,
            wait_timeout=wait_timeout,
            tell=not as_json,
        )
        if done:
            print_submitted(done, submitted_json(done, resolved) if as_json else None)


def _succeed(text: str, *, as_json: bool) -> None:
    """Submit the successor of a job, and print its handle."""
    from aegis.fleet.jobs import Jobs  # noqa: PLC0415 - start-up time
    from aegis.fleet.successors import submit_successor  # noqa: PLC0415 - as above

    handle = submit_successor(Jobs(os.environ), text)
    if as_json:
        print_json({"job_id": handle})
    else:
        click.echo(handle)
