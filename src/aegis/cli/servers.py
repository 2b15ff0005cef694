"""Which servers a command asks: those of a job, of an endpoints file, or of a registry."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.flags import with_flags
from aegis.cli.jobs import open_jobs
from aegis.cli.registry import connect, token_option
from aegis.errors import ConfigError, SiteError
from aegis.spec.deployment import ENDPOINTS, REGISTRY_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from aegis.api.targets import Targets


def registry_options(*, several: bool = False) -> tuple[Callable[..., Any], ...]:
    """Return the flags that name a registry of servers, or several, and its token."""
    more = "may be given several times" if several else "wins over host and port"
    return (
        click.option(
            "--registry-url",
            envvar="AEGIS_REGISTRY_URL",
            multiple=several,
            metavar="URL",
            help=f"Servers of this registry, http://HOST:PORT; {more}.",
        ),
        click.option("--registry-host", envvar="AEGIS_REGISTRY_HOST", metavar="HOST"),
        click.option(
            "--registry-port",
            envvar="AEGIS_REGISTRY_PORT",
            metavar="PORT",
            type=click.IntRange(1, 65535),
            help=f"[default: {REGISTRY_PORT}]",
        ),
        token_option,
    )


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say which servers are asked, and with what key."""
    file = click.Path(path_type=Path, dir_okay=False)
    options = (
        click.option(
            "--endpoints-file",
            type=file,
            metavar="FILE",
            help=f"Servers, one host:port a line (default: {ENDPOINTS}, where nothing else is named).",
        ),
        *registry_options(),
        click.option(
            "--api-key-file",
            type=file,
            metavar="FILE",
            help="File, readable by nobody else, with the key of the servers (default: $VLLM_API_KEY).",
        ),
    )
    return with_flags(function, options)


def read_key(how: Mapping[str, Any]) -> str | None:
    """Return the key that the servers ask for.

    Raises:
        ConfigError: it cannot be read, or others may read it.
    """
    from aegis.api.http import read_api_key  # noqa: PLC0415 - start-up time

    return read_api_key(how["api_key_file"], os.environ)


@contextlib.contextmanager
def open_targets(handle: str | None, how: Mapping[str, Any]) -> Iterator[Targets]:
    """Yield the servers there are, followed until the end of the block.

    What is named on the command line wins over the environment; where nothing is named, the usual endpoints file counts.

    Args:
        handle: a job.
        how: what `server_options` gave.

    Raises:
        ConfigError: two of them are named, or none; a file is wrong.
        NotFoundError: there is no such job.
        SiteError: the registry does not answer, or the job has none at present.
    """
    from aegis.api.targets import Targets  # noqa: PLC0415 - start-up time

    named = click.get_current_context().get_parameter_source
    flags = ("endpoints_file", "registry_url", "registry_host", "registry_port")
    given = {name for name in flags if _is_flag(named(name))}
    by_file, by_registry = "endpoints_file" in given, bool(given - {"endpoints_file"})
    if bool(handle) + by_file + by_registry > 1:
        raise ConfigError(
            "servers are named in two ways", hint="name a job, --endpoints-file, or a registry: one of them"
        )
    if handle:
        with _of_job(handle) as targets, targets:
            yield targets
        return
    if not by_file and (how["registry_url"] or how["registry_host"] or by_registry):
        client = connect(
            url=how["registry_url"],
            host=how["registry_host"] or "localhost",
            port=how["registry_port"] or REGISTRY_PORT,
            token_file=how["token_file"],
        )
        with Targets.from_registry(client) as targets:
            yield targets
        return
    file = how["endpoints_file"] or Path(ENDPOINTS)
    if not by_file and not file.exists():
        raise ConfigError(
            f"no servers are named, and there is no {ENDPOINTS} here",
            hint="name a job (`aegis status` lists them), --endpoints-file FILE, or --registry-host HOST",
        )
    with Targets.from_file(file, read_key(how)) as targets:
        yield targets


def _is_flag(source: click.core.ParameterSource | None) -> bool:
    return source is click.core.ParameterSource.COMMANDLINE


@contextlib.contextmanager
def _of_job(handle: str) -> Iterator[Targets]:
    """Yield the servers of a job, while the way to its registry is held."""
    from aegis.api.targets import Targets  # noqa: PLC0415 - start-up time
    from aegis.fleet.registries import registry_of  # noqa: PLC0415 - as above
    from aegis.registry.client import TIMEOUT_SECONDS  # noqa: PLC0415 - as above

    with open_jobs(None) as jobs:
        manifest = jobs.find(handle)
        if not manifest.registry_url:
            raise SiteError(
                f"{manifest.job} has no registry yet, or has ended",
                hint=f"`aegis status {manifest.job}` says which; `aegis wait` waits until it serves",
            )
        with registry_of(jobs.transport, manifest, TIMEOUT_SECONDS) as client:
            yield Targets.from_registry(client)
