"""`aegis registry`: ask a registry for its services, or run one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.flags import format_flags, with_flags
from aegis.cli.render import age, printable, table
from aegis.errors import ConfigError
from aegis.registry.model import (
    EARLIER_NAMES,
    HEALTHY_SECONDS,
    REMOVE_SECONDS,
    STALE_SECONDS,
    STATUSES,
    Count,
    Service,
)
from aegis.spec.deployment import REGISTRY_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aegis.registry.client import RegistryClient

HEADER = ("SERVICE ID", "ADDRESS", "TYPE", "STATUS", "MODEL", "SEEN")

type_option = click.option(
    "--type", "service_type", metavar="TYPE", help="Only services of this type (vllm, ...)."
)
status_option = click.option(
    "--status", type=click.Choice([*STATUSES, *EARLIER_NAMES]), help="Only services in this state."
)
model_option = click.option("--model", metavar="NAME", help="Only services of this model.")
token_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File that holds the registry's token (default: $AEGIS_REGISTRY_TOKEN).",
)


def connection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say which registry to ask and how to answer."""
    options = (
        click.option(
            "--registry-url",
            envvar="AEGIS_REGISTRY_URL",
            metavar="URL",
            help="http://HOST:PORT; wins over host and port.",
        ),
        click.option(
            "--registry-host",
            envvar="AEGIS_REGISTRY_HOST",
            default="localhost",
            show_default=True,
            metavar="HOST",
        ),
        click.option(
            "--registry-port",
            envvar="AEGIS_REGISTRY_PORT",
            default=REGISTRY_PORT,
            show_default=True,
            metavar="PORT",
            type=click.IntRange(1, 65535),
        ),
        token_option,
        *format_flags("json is what the registry sent, as it is."),
    )
    return with_flags(function, options)


@click.group()
def command() -> None:
    """Ask a registry for its services, or run one."""


@command.command("list")
@type_option
@status_option
@model_option
@connection_options
def list_(service_type: str | None, status: str | None, model: str | None, **how: Any) -> None:
    """List all registered services."""
    query = {"type": service_type, "status": status, "model": model}
    _show("/services", query, list[Service], services_table, **how)


@command.command("list-healthy")
@type_option
@model_option
@click.option(
    "--timeout",
    type=float,
    default=HEALTHY_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Only services that were seen alive less than this long ago.",
)
@connection_options
def list_healthy(service_type: str | None, model: str | None, timeout: float, **how: Any) -> None:
    """List the services that are healthy and were seen recently."""
    query = {"type": service_type, "model": model, "timeout": timeout}
    _show("/services/healthy", query, list[Service], services_table, **how)


@command.command()
@type_option
@status_option
@model_option
@connection_options
def count(service_type: str | None, status: str | None, model: str | None, **how: Any) -> None:
    """Count registered services."""
    query = {"type": service_type, "status": status, "model": model}
    _show("/services/count", query, Count, lambda answer: str(answer.count), **how)


@command.command()
@click.argument("service_id")
@connection_options
def get(service_id: str, **how: Any) -> None:
    """Show one service by its id."""
    from aegis.registry.client import service_path  # noqa: PLC0415 - http.client costs half of a --help

    _show(service_path(service_id), {}, Service, details, **how)


@command.command()
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to bind.")  # noqa: S104 - clients are on other nodes
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=REGISTRY_PORT,
    show_default=True,
    help="Port to bind; 0 takes any free one.",
)
@token_option
@click.option("--protect-reads", is_flag=True, help="Ask for the token on reads too.")
@click.option(
    "--journal",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep changes in this file, so that a restarted registry knows its services at once.",
)
@click.option(
    "--stale-after",
    type=float,
    default=STALE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Without a word from its node for this long, a service is shown unhealthy.",
)
@click.option(
    "--remove-after",
    type=float,
    default=REMOVE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Without a word from its node for this long, a service is removed.",
)
@click.option(
    "--port-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the bound port to this file once the registry listens.",
)
@click.option(
    "--logs",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder with a log ID.log of each instance, which /ui shows to who presents the token.",
)
@click.option(
    "--federate",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Show the services of another registry too: its URL, a job's handle, a service's name, or `jobs` for every "
    "job of yours that lives; may be given several times.",
)
@click.option(
    "--remote",
    "remotes",
    metavar="USER@HOST",
    multiple=True,
    help="These sources are behind this login node: one prompt, one connection.",
)
def serve(
    token_file: Path | None, sources: tuple[str, ...], remotes: tuple[str, ...], **options: Any
) -> None:
    """Run a registry until it is told to stop (SIGTERM, Ctrl-C)."""
    import logging  # noqa: PLC0415 - only this subcommand needs it

    from aegis.registry import server  # noqa: PLC0415 - loads asyncio and aiohttp

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    token = read_token(token_file)
    if token is None:
        click.echo(
            f"warning: no token: anybody who reaches port {options['port']} may write to this registry",
            err=True,
        )
    if remotes and not sources:
        raise ConfigError(
            "--remote says where sources are, and there is none", hint="name them with --federate"
        )
    if not sources:
        server.serve(token=token, **options)
        return
    from aegis.cli.sources import is_url, look_for, open_places, pause  # noqa: PLC0415 - only to federate
    from aegis.registry.federate import Federation  # noqa: PLC0415 - as above

    names, urls = [each for each in sources if not is_url(each)], [each for each in sources if is_url(each)]
    with open_places(remotes) as places:
        told = logging.getLogger("aegis.registry").info
        federation = Federation(look_for(names, urls, places), told, pause(remotes))
        server.serve(token=token, federation=federation, **options)


def read_token(path: Path | None) -> str | None:
    """Return the token of a file, else of AEGIS_REGISTRY_TOKEN, else None; an unreadable file is a ConfigError."""
    if path is None:
        return os.environ.get("AEGIS_REGISTRY_TOKEN") or None
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file cannot be read: {error}", hint="check --token-file") from None
    if not token:
        raise ConfigError(
            f"the token file {str(path)!r} is empty", hint="put one line of printable ASCII in it"
        )
    return token


def connect(*, url: str | None, host: str, port: int, token_file: Path | None) -> RegistryClient:
    """Return the client that the connection flags ask for."""
    from aegis.registry.client import RegistryClient  # noqa: PLC0415 - http.client costs half of a --help

    name = f"[{host}]" if ":" in host else host
    return RegistryClient(url or f"http://{name}:{port}", token=read_token(token_file))


def _show(
    path: str,
    query: Mapping[str, object],
    type_: Any,
    render: Callable[[Any], str],
    *,
    registry_url: str | None,
    registry_host: str,
    registry_port: int,
    token_file: Path | None,
    form: str,
    as_json: bool,
) -> None:
    client = connect(url=registry_url, host=registry_host, port=registry_port, token_file=token_file)
    answer = client.request("GET", path, query=query)
    value = client.decode(answer, type_)  # in every format: a stranger's answer must not pass
    if as_json or form == "json":
        click.echo(answer)
    else:
        click.echo(render(value))


def services_table(services: Sequence[Service]) -> str:
    """Lay services out as aligned columns, sorted by id."""
    now = time.time()
    return table(HEADER, (_row(service, now) for service in sorted(services, key=lambda s: s.service_id)))


def details(service: Service) -> str:
    """Lay one service out as a key and a value per line."""
    pairs = [*zip(HEADER, _row(service, time.time()), strict=True)]
    pairs += [(f"metadata.{key}", _readable(key, value)) for key, value in service.metadata.items()]
    return table(pairs[0], pairs[1:])


def _readable(key: str, value: Any) -> Any:
    """Show a moment as an age, and numbers by name as such."""
    if key == "since" and isinstance(value, int | float):
        return f"{age(time.time() - value)} ago"
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "-"
    return value


def _row(service: Service, now: float) -> tuple[str, ...]:
    return (
        printable(service.service_id),
        printable(f"{service.host}:{service.port}"),
        service.service_type,
        service.status,
        str(service.metadata.get("model", "-")),
        age(now - service.last_seen),
    )
