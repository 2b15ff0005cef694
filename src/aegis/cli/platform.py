"""`aegis platform`: the site profiles."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
import msgspec

from aegis.cli.render import print_json, table
from aegis.errors import DeploymentError, Problem
from aegis.spec.platforms import Site, load_platform, profile_files

if TYPE_CHECKING:
    from aegis.spec.platform import Platform


@click.group()
def command() -> None:
    """List or show site profiles.

    A file NAME.yaml in $AEGIS_PLATFORM_DIR or ~/.config/aegis/platforms adds a profile, or replaces a built-in one;
    with `extends: NAME` it gives only what differs.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_platforms(as_json: bool) -> None:
    """List the profiles that `platform:` may name."""
    site = Site.here(os.environ)
    platforms: list[Platform] = []
    problems: list[Problem] = []
    for name in sorted(profile_files(site)):
        try:
            platforms.append(load_platform(name, site))
        except DeploymentError as error:  # one bad profile does not hide the others
            problems += error.problems
    _print(platforms, as_json=as_json)
    if problems:
        raise DeploymentError(problems)


def _print(platforms: list[Platform], *, as_json: bool) -> None:
    if as_json:
        print_json([msgspec.to_builtins(platform) for platform in platforms])
        return
    rows = [
        (
            platform.name,
            platform.scheduler,
            f"{platform.node.devices or '?'} x {platform.node.device_kind}",
            f"{platform.node.device_memory_gib:g} GiB" if platform.node.device_memory_gib else "?",
            platform.description,
        )
        for platform in platforms
    ]
    click.echo(table(("NAME", "SCHEDULER", "DEVICES/NODE", "MEMORY", "DESCRIPTION"), rows))


@command.command()
@click.argument("name", default="auto")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Print one profile (a name or a file; default: this machine's)."""
    import yaml  # noqa: PLC0415 - start-up time

    platform = load_platform(name, Site.here(os.environ), where="NAME")
    values = _without_empty(msgspec.to_builtins(platform))
    if as_json:
        print_json(values)
        return
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100), nl=False)


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, "", [], {}, ())}
    if isinstance(value, list | tuple):
        return [_without_empty(item) for item in value]
    return value
