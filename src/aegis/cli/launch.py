"""`aegis launch`: start the servers here and stay with them; or, with MODEL and outside of a job, submit it."""

from __future__ import annotations

import os
import time
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

    from aegis.spec.resolve import Resolved

ALLOCATIONS = ("SLURM_JOB_ID", "PBS_NODEFILE")


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
    """Start the servers here: in this allocation, or on this machine.

    Stays with them: restarts what dies, keeps the registry and the endpoints file current, and ends every process on
    Ctrl-C, SIGTERM or its own death. The endpoints are printed when all servers are healthy or given up.

    `aegis launch MODEL` outside of an allocation submits the catalog's MODEL as a job, as `aegis submit MODEL` does;
    --dry-run, --force, --remote, --wait-timeout and --json are for that.
    """
    if model_name is None and (remote is not None or dry_run):
        raise click.UsageError("--remote and --dry-run are flags of `aegis submit`, or of `launch MODEL`")
    with transport_to(remote) as transport:
        resolved = resolve_wish(
            model_name, config, options, transport=transport, no_environment=no_environment
        )
        if not (remote or dry_run or (model_name and _is_submission(resolved))):
            _launch(resolved)
            return
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


def _is_submission(resolved: Resolved) -> bool:
    """Tell whether a launch of a model is meant as vec-inf means it: a job."""
    inside = any(os.environ.get(name) for name in ALLOCATIONS)
    return not inside and resolved.platform.launcher != "local"


def _launch(resolved: Resolved) -> None:
    from aegis.fleet.launch import Launch  # noqa: PLC0415 - start-up time

    Launch(resolved, os.environ, say).run(lambda endpoints: click.echo("\n".join(endpoints)))


def say(line: str) -> None:
    """Print a line of progress, with the time, on stderr."""
    click.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)
