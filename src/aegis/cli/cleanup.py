"""`aegis cleanup`: delete the logs of jobs that have ended."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from aegis.cli.jobs import say
from aegis.errors import ConfigError, PartialSuccess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@click.command()
@click.option(
    "--log-dir", metavar="DIR", help="Root of the run directories (default: AEGIS_LOG_DIR or ~/.aegis-logs)."
)
@click.option("--model-family", metavar="NAME", help="Runs of this family: the folder below the root.")
@click.option("--model-name", metavar="NAME", help="Runs of this model.")
@click.option("--job-id", metavar="ID", help="The run of this job.")
@click.option("--before-job-id", type=int, metavar="N", help="Runs of jobs with a smaller number.")
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Runs submitted before so many days."
)
@click.option("--all", "everything", is_flag=True, help="All runs that have ended.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(
    *,
    log_dir: str | None,
    model_family: str | None,
    model_name: str | None,
    job_id: str | None,
    before_job_id: int | None,
    older_than: float | None,
    everything: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete the run directories of jobs that have ended: those that match all filters that are given.

    Only directories <root>/<family>/<model>.<job id> with a manifest of aegis or vec-inf are ever deleted, and none of
    a job that waits, runs, or cannot be asked for.
    """
    from aegis.fleet.cleanup import Filters, delete, log_root, plan  # noqa: PLC0415 - start-up time
    from aegis.fleet.jobs import Jobs  # noqa: PLC0415 - start-up time

    filters = Filters(
        model_family=model_family,
        model_name=model_name,
        job_id=job_id,
        before_job_id=before_job_id,
        older_than=older_than,
    )
    jobs = Jobs(os.environ)
    planned = plan(jobs, log_root(log_dir, os.environ), filters, everything=everything)
    for path, why in planned.kept:
        say(f"kept: {path}: {why}")
    if dry_run:
        _show(planned.deleted)
        return
    if planned.deleted and not yes:
        _ask(planned.deleted)
    done = delete(jobs, planned.deleted)
    if done.deleted:
        click.echo(f"Deleted {len(done.deleted)} log directory(ies).")
    else:
        click.echo("No matching log directories were deleted.")
    if done.kept:
        raise PartialSuccess("\n".join(f"{path}: {why}" for path, why in done.kept))


def _show(paths: Sequence[Path]) -> None:
    if not paths:
        click.echo("Dry run: no matching log directories found.")
        return
    click.echo(f"Dry run: {len(paths)} directories would be deleted:")
    for path in paths:
        click.echo(f"  - {path}")


def _ask(paths: Sequence[Path]) -> None:
    """Ask before anything is deleted.

    Raises:
        ConfigError: there is nobody to ask.
        click.Abort: the answer is no.
    """
    what = f"{len(paths)} director{'y' if len(paths) == 1 else 'ies'}"
    if not (sys.stdin and sys.stdin.isatty()):
        raise ConfigError(
            f"there is no terminal to ask on whether to delete {what}",
            hint="look at them with --dry-run, then give --yes",
        )
    for path in paths:
        say(f"  - {path}")
    click.confirm(f"Delete {what}?", abort=True, err=True)
