"""`aegis gateway keys`: make, list and take back the keys that a gateway's clients present."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from aegis.cli.flags import format_flags, with_flags
from aegis.cli.render import print_json, table
from aegis.errors import ConfigError
from aegis.gateway.keyfile import add_key, read_keys, remove_key
from aegis.spec.service import parse_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.gateway.keyfile import Key

HEADER = ("NAME", "MODELS", "REQUESTS/MIN", "TOKENS/MIN", "UNTIL")
SECRET_FIELD = "sha256"  # noqa: S105 - the name of a field: nobody who reads a list needs the hash

file_option = click.option(
    "--file",
    required=True,
    envvar="AEGIS_GATEWAY_KEYS",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The file of the keys, as `aegis gateway --keys` takes it.",
)


def list_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags of `list`."""
    return with_flags(function, (file_option, *format_flags("How to answer.")))


@click.group()
def keys() -> None:
    """Make, list and take back the keys that a gateway's clients present.

    A gateway reads its file again within a second of a change.
    """


@keys.command()
@click.argument("name")
@file_option
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="GLOB",
    help="Only good for these models, such as 'meta-llama/*'; may be given several times (default: all).",
)
@click.option(
    "--requests-per-minute", type=click.IntRange(1), metavar="N", help="Beyond it 429, with Retry-After."
)
@click.option(
    "--tokens-per-minute",
    type=click.IntRange(1),
    metavar="N",
    help="Of prompts and answers together; beyond it 429, with Retry-After.",
)
@click.option(
    "--until",
    metavar="WHEN",
    help="Good before this: a date and time (2027-01-31T18:00), a date, or a duration (30-00:00:00).",
)
def add(name: str, file: Path, until: str | None, **limits: Any) -> None:
    """Make a key for NAME and print it.

    It is printed this once: the file holds only its hash.
    """
    secret = add_key(file, name, until=_moment(until) if until else None, **limits)
    click.echo(secret)
    click.echo(f"key {name!r} is in {str(file)!r}; it is not shown again", err=True)


@keys.command("list")
@list_options
def list_(file: Path, form: str, as_json: bool) -> None:
    """List the keys of a file."""
    found = sorted(read_keys(file).keys, key=lambda key: key.name)
    if as_json or form == "json":
        print_json([_shown(key) for key in found])
        return
    now = datetime.now(UTC)
    click.echo(table(HEADER, (_row(key, now) for key in found)))


@keys.command()
@click.argument("name")
@file_option
def remove(name: str, file: Path) -> None:
    """Take the key of NAME back."""
    remove_key(file, name)
    click.echo(f"key {name!r} is no longer in {str(file)!r}", err=True)


def _moment(text: str) -> datetime:
    now = time.time()
    try:
        moment = parse_until(text, now)
        found = datetime.fromtimestamp(round(moment), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(f"--until: {error}", hint="write 2027-01-31T18:00, or D-HH:MM:SS") from None
    if moment <= now:
        raise ConfigError(f"--until {text} is in the past")
    return found


def _shown(key: Key) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(msgspec.structs.asdict(key))
    return {name: value for name, value in values.items() if name != SECRET_FIELD}


def _row(key: Key, now: datetime) -> tuple[object, ...]:
    until = "-"
    if key.until is not None:
        when = key.until.astimezone().isoformat(sep=" ", timespec="minutes")
        until = when if key.until > now else f"{when} (expired)"
    return (
        key.name,
        " ".join(key.models) or "all",
        key.requests_per_minute or "-",
        key.tokens_per_minute or "-",
        until,
    )
