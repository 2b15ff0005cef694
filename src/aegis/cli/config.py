"""`aegis config`: what a deployment file comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from aegis.cli.options import DeploymentCommand, deployment_options, resolve_options
from aegis.cli.render import print_json

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def command() -> None:
    """Show a resolved deployment, or the schema of its file."""


@command.command(cls=DeploymentCommand)
@deployment_options
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(config: Path | None, origin: bool, as_json: bool, no_environment: bool, **options: Any) -> None:
    """Print the deployment that the file, the environment and the flags come to.

    The output is itself a deployment file. A token is never shown.
    """
    from aegis.spec.dump import dump_deployment  # noqa: PLC0415 - start-up time

    resolved = resolve_options(config, options, no_environment=no_environment)
    if as_json:
        shown = msgspec.to_builtins(resolved.deployment)
        print_json({"deployment": shown, "origins": resolved.origins} if origin else shown)
        return
    click.echo(dump_deployment(resolved.deployment, resolved.origins if origin else None), nl=False)


@command.command()
def schema() -> None:
    """Print the JSON Schema of deployment files, for editors."""
    from aegis.spec.dump import deployment_schema  # noqa: PLC0415 - start-up time

    print_json(deployment_schema())
