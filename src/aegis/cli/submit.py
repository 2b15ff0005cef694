"""`aegis submit`: a deployment, or a model of the catalog, as a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aegis.cli.catalog_options import catalog_options
from aegis.cli.options import DeploymentCommand, deployment_options
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
def command(
    *,
    model_name: str | None,
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
    """
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
