"""`aegis launch`: start the servers here and stay with them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.options import DeploymentCommand, deployment_options, resolve_options

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=DeploymentCommand)
@deployment_options
def command(config: Path | None, no_environment: bool, **options: Any) -> None:
    """Start the servers here: in this allocation, or on this machine.

    Stays with them: restarts what dies, keeps the registry and the endpoints file current, and ends every process on
    Ctrl-C, SIGTERM or its own death. The endpoints are printed when all servers are healthy or given up.
    """
    from aegis.fleet.launch import Launch  # noqa: PLC0415 - start-up time

    resolved = resolve_options(config, options, no_environment=no_environment)
    Launch(resolved, os.environ, say).run(lambda endpoints: click.echo("\n".join(endpoints)))


def say(line: str) -> None:
    """Print a line of progress, with the time, on stderr."""
    click.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)
