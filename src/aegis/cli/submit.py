"""`aegis submit`: a deployment as a job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from aegis.cli.options import DeploymentCommand, deployment_options, resolve_options
from aegis.cli.render import print_json


@click.command(cls=DeploymentCommand)
@deployment_options
@click.option("--dry-run", is_flag=True, help="Print the job script and make nothing.")
@click.option(
    "--wait-timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="With --wait: wait at most so long.",
)
@click.option("--json", "--json-mode", "as_json", is_flag=True, help="Print JSON.")
def command(
    config: Path | None,
    no_environment: bool,
    dry_run: bool,
    wait_timeout: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit a deployment as a job, and print its handle.

    With --wait, return when every server is healthy or given up, and print the endpoints; exit 1 if the job ends first.
    """
    from aegis.fleet.prepare import refuse_shared_endpoints  # noqa: PLC0415 - start-up time
    from aegis.fleet.submit import Place, job_request, scheduler_for  # noqa: PLC0415 - start-up time
    from aegis.fleet.wait import wait_until_ready  # noqa: PLC0415 - start-up time
    from aegis.schedulers.transport import Here  # noqa: PLC0415 - start-up time

    if wait_timeout is not None and not options["wait"]:
        raise click.UsageError("--wait-timeout needs --wait")
    resolved = resolve_options(config, options, no_environment=no_environment)
    scheduler = scheduler_for(resolved.deployment.scheduler, Here(os.environ), os.environ)
    request = job_request([resolved], Place.here())
    script = scheduler.render(request)
    if dry_run:
        click.echo(script, nl=False)
        return
    refuse_shared_endpoints(Path(request.components[0].endpoints_file), os.environ)
    secrets = {"HF_TOKEN": resolved.hf_token.reveal()} if resolved.hf_token else {}
    submission = scheduler.submit(request, script, secrets)
    handle = submission.handle
    for warning in submission.warnings:
        click.echo(f"warning: {warning}", err=True)
    endpoints: list[str] = []
    if resolved.deployment.wait:
        click.echo(f"submitted {handle}", err=True)
        endpoints = wait_until_ready(
            handle, os.environ, lambda line: click.echo(line, err=True), wait_timeout
        )
    if as_json:
        print_json({"job_id": handle, "model_name": ", ".join(request.models), "endpoints": endpoints})
        return
    click.echo("\n".join(endpoints) if resolved.deployment.wait else handle)
