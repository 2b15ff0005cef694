"""`aegis wait`: return when a job serves, or has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aegis.cli.jobs import open_jobs, remote_option, say, waiting_for

if TYPE_CHECKING:
    from aegis.fleet.wait import Goal


@click.command()
@click.argument("handle")
@click.option(
    "--for",
    "goal",
    type=click.Choice(["ready", "ended"]),
    default="ready",
    show_default=True,
    help="What to wait for.",
)
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait at most so long.")
@remote_option
def command(handle: str, goal: Goal, timeout: float | None, remote: str | None) -> None:
    """Wait until every server of a job is healthy or given up, and print the endpoints; or until the job has ended.

    Exit codes: 1 if the job ends first (or, with --for ended, has failed), 5 after --timeout, 7 if some servers were
    given up.
    """
    from aegis.fleet.wait import wait_for  # noqa: PLC0415 - start-up time

    with open_jobs(remote) as jobs, waiting_for(handle):
        outcome = wait_for(jobs, handle, goal, say, timeout)
    if outcome.endpoints:
        click.echo("\n".join(outcome.endpoints))
    if outcome.problem:
        raise outcome.problem
