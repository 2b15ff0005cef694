"""What `aegis top` and `aegis metrics --prometheus` look at: a job, a service, a registry."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.flags import with_flags
from aegis.cli.registry import read_token, token_option
from aegis.errors import ConfigError, SiteError
from aegis.spec.deployment import REGISTRY_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from aegis.registry.sources import Source, Way


EVERY = "jobs"  # names all of this user that run


def registry_options(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what adds the flags that name a registry; `text` is the help of the first."""
    options = (
        click.option("--registry-url", envvar="AEGIS_REGISTRY_URL", metavar="URL", help=text),
        click.option(
            "--registry-host", envvar="AEGIS_REGISTRY_HOST", metavar="HOST", help="The same by host and port."
        ),
        click.option(
            "--registry-port",
            envvar="AEGIS_REGISTRY_PORT",
            metavar="PORT",
            type=click.IntRange(1, 65535),
            help=f"[default: {REGISTRY_PORT}]",
        ),
        token_option,
    )
    return lambda function: with_flags(function, options)


@contextlib.contextmanager
def open_sources(
    name: str | None, how: Mapping[str, Any], remote: str | None, *, default: str | None = None
) -> Iterator[tuple[str, Callable[[], list[Source[Way]]]]]:
    """Yield what is looked at, and what finds the registries that tell of it, while the way there is held.

    Args:
        name: job, service, or the URL of a registry or gateway; None: `how` names a registry.
        how: registry_url, registry_host, registry_port, token_file.
        remote: USER@HOST that all of them are behind.
        default: name of what is meant where nothing is named.

    Raises:
        ConfigError: two are named, or none.
    """
    from aegis.cli.sources import is_url, look_for, open_places  # noqa: PLC0415 - start-up time

    given = registry_flags()
    if name is not None and given:
        raise ConfigError(
            "it is named in two ways",
            hint=f"name a job or service, or a registry with {given[0]}: one of them",
        )
    url = _url(how, given)
    meant = name or url or default
    if meant is None:
        raise ConfigError(
            "nothing is named", hint="name a job, a service, or a registry with --registry-host"
        )
    urls = [meant] if is_url(meant) else []
    with open_places([remote] if remote else []) as places:
        yield meant, look_for([] if urls else [meant], urls, places, read_token(how["token_file"]))


def _url(how: Mapping[str, Any], given: Sequence[str]) -> str | None:
    """Return the URL of the registry that flags or the environment name."""
    if how["registry_url"] or not (given or how["registry_host"]):
        return how["registry_url"] or None
    host = how["registry_host"] or "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{how['registry_port'] or REGISTRY_PORT}"


def registry_flags() -> list[str]:
    """Return the flags that name a registry and stand on the command line: the environment may name one as well."""
    context = click.get_current_context()
    names = ("registry_url", "registry_host", "registry_port")
    flag = click.core.ParameterSource.COMMANDLINE
    return [f"--{name.replace('_', '-')}" for name in names if context.get_parameter_source(name) is flag]


def no_registry(name: str) -> SiteError:
    """Return the error for what has no registry at present."""
    return SiteError(
        "none of your jobs runs" if name == EVERY else f"{name} has no registry yet, or has ended",
        hint="`aegis status` shows jobs; --registry-host HOST names a registry",
    )
