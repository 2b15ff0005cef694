"""`aegis gateway`: one URL in front of all servers of jobs, services, registries and endpoints files."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click
from msgspec.structs import replace

from aegis.cli.flags import with_flags
from aegis.cli.jobs import say
from aegis.cli.registry import read_token
from aegis.cli.servers import registry_options
from aegis.errors import ConfigError
from aegis.gateway.settings import MIB, Settings
from aegis.spec.deployment import ENDPOINTS, GATEWAY_PORT, REGISTRY_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from aegis.gateway.sources import Place, Sources
    from aegis.registry.sources import Source

FIRST_SECONDS: Final = 5.0  # that sources have to answer before the gateway says how many servers there are
LOOPBACK: Final = "127.0.0.1"  # what comes through the user's own login is for nobody else, unless he says so
LOOPBACKS: Final = frozenset({LOOPBACK, "::1", "localhost"})
KEYS: Final = "keys"  # the word that is no job but the other command
DEFAULTS: Final = Settings()
NAMED: Final = 3  # sources that are named when it begins
FILE: Final = click.Path(path_type=Path, dir_okay=False)

# Field of `Settings` or of its policy, and what it says; each is a flag of the same name.
LIMITS: Final = {
    "connect_seconds": "For a connection to a server.",
    "first_byte_seconds": "For the first byte of an answer; then another server is asked.",
    "idle_seconds": "Between two pieces of an answer (default: none; a wedged server is found by probing it).",
    "attempts": "Servers that one request is sent to, one after the other.",
    "outstanding": "Requests that one server may have at a time.",
    "stall_seconds": "Without a byte from a server that has requests, until it is probed.",
    "probe_seconds": "For the answer to a probe; then the server gets no requests.",
    "queue_length": "Requests that may wait for a server; beyond it 429.",
    "queue_seconds": "That a request may wait for a server that has room; then 429.",
    "absent_seconds": "That a request may wait for the first server of its model; then 503.",
    "body_seconds": "For a request to arrive.",
    "grace_seconds": "For running requests to end, after Ctrl-C or SIGTERM.",
}
POLICY: Final = frozenset({"outstanding", "stall_seconds", "probe_seconds"})


class WithKeys(click.Command):
    """A command with an argument of its own, and `keys` as the one first word that is another command."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of `keys` where that is the first word."""
        if args[:1] != [KEYS]:
            return super().make_context(info_name, args, parent, **extra)
        # Around it a command without arguments, which would stand in its usage.
        outer = click.Context(click.Command(info_name), parent=parent, info_name=info_name)
        return self.other().make_context(KEYS, args[1:], parent=outer, **extra)

    def other(self) -> click.Command:
        """Return the command `keys`."""
        from aegis.cli.gateway_keys import keys  # noqa: PLC0415 - start-up time

        return keys

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Name the other command as a group would."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(KEYS, "Make, list and take back the keys of clients.")])


def limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add a flag for each limit."""
    options = []
    for name, text in LIMITS.items():
        default = getattr(DEFAULTS.policy if name in POLICY else DEFAULTS, name)
        whole = isinstance(default, int)
        kind: click.ParamType[Any] = click.IntRange(1) if whole else click.FloatRange(0, min_open=True)
        options.append(
            click.option(
                f"--{name.replace('_', '-')}",
                type=kind,
                default=default,
                show_default=f"{default:g}" if default is not None else False,
                metavar="N" if whole else "SECONDS",
                help=text,
            )
        )
    return with_flags(function, options)


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say which servers there are."""
    options = (
        *registry_options(several=True),
        click.option(
            "--endpoints-file",
            type=FILE,
            multiple=True,
            metavar="FILE",
            help="Servers, one host:port a line; may be given several times.",
        ),
        click.option(
            "--remote",
            metavar="USER@HOST",
            multiple=True,
            help="Jobs, registries and servers are behind this login node: one prompt, one connection.",
        ),
    )
    return with_flags(function, options)


@click.command(cls=WithKeys)
@click.argument("names", metavar="[HANDLE|SERVICE]...", nargs=-1)
@source_options
@click.option(
    "--host",
    metavar="ADDRESS",
    help=f"Address to bind.  [default: {DEFAULTS.host}; with --remote {LOOPBACK}]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=GATEWAY_PORT,
    show_default=True,
    help="Port to bind; 0 takes any free one.",
)
@click.option(
    "--port-file", type=FILE, metavar="FILE", help="Write the bound port to this file once it listens."
)
@click.option(
    "--keys",
    "keys_file",
    type=FILE,
    metavar="FILE",
    help="Keys that clients have to show (`aegis gateway keys`).",
)
@click.option(
    "--api-key-file",
    type=FILE,
    metavar="FILE",
    help="File, readable by nobody else, with the key of the servers (default: $VLLM_API_KEY).",
)
@click.option(
    "--tls-certificate",
    type=FILE,
    metavar="FILE",
    help="Serve https with this certificate (PEM, with its chain).",
)
@click.option("--tls-key", type=FILE, metavar="FILE", help="Its key, if it is in a file of its own.")
@click.option(
    "--access-log",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE|-",
    help="Write a line of JSON for each request, without what was asked and answered.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1),
    default=DEFAULTS.max_body // MIB,
    show_default=True,
    metavar="MIB",
    help="Size of a request; beyond it 413.",
)
@limit_options
def command(names: tuple[str, ...], **options: Any) -> None:
    """Serve one OpenAI-compatible URL in front of all healthy servers, until Ctrl-C.

    The servers are those of a job (its handle), of a service (every job that has its name, now and later), of registries,
    or of endpoints files; all that are named are joined. Its base URL is printed once it listens; what the servers do is
    on the page /ui.
    """
    from aegis.api.http import read_api_key  # noqa: PLC0415 - start-up time

    key = read_api_key(options["api_key_file"], os.environ)
    settings = _settings(options, key)
    if key and settings.keys_file is None and settings.host not in LOOPBACKS:
        say("warning: the servers' key is shown for every client: anybody who reaches it may ask; see --keys")
    with _sources(names, options, key) as sources:
        sources.settle(FIRST_SECONDS)
        say(_found(sources))
        from aegis.gateway.server import serve  # noqa: PLC0415 - loads asyncio and aiohttp

        # A log of requests on standard output is alone there.
        serve(settings, sources, say, say if options["access_log"] == Path("-") else click.echo)


def _settings(options: Mapping[str, Any], key: str | None) -> Settings:
    files = ("port_file", "keys_file", "tls_certificate", "tls_key", "access_log")
    policy = replace(DEFAULTS.policy, **{name: options[name] for name in POLICY})
    return Settings(
        **{name: options[name] for name in ("port", *files, *(LIMITS.keys() - POLICY))},
        host=options["host"] or (LOOPBACK if options["remote"] else DEFAULTS.host),
        max_body=options["max_body"] * MIB,
        upstream_key=key,
        policy=policy,
    )


@contextlib.contextmanager
def _sources(names: Sequence[str], options: Mapping[str, Any], key: str | None) -> Iterator[Sources]:
    """Yield what was named, followed until the end of the block."""
    from aegis.cli.sources import is_url, look_for, open_places, pause  # noqa: PLC0415 - start-up time
    from aegis.gateway.sources import Sources  # noqa: PLC0415 - as above

    urls = [*filter(is_url, names), *_registries(options, named=bool(names))]
    jobs = [name for name in names if not is_url(name)]
    files = list(options["endpoints_file"])
    if not (urls or jobs or files):
        files = _usual_file(options["remote"])
    if files and options["remote"]:
        raise ConfigError(
            "an endpoints file says nothing of servers behind --remote",
            hint="name a job, a service or a registry",
        )
    given = [_file(file) for file in dict.fromkeys(files)]
    with open_places(options["remote"]) as places:
        look = look_for(jobs, urls, places, read_token(options["token_file"]))

        def look_everywhere() -> list[Source[Place]]:
            return [*given, *cast("list[Source[Place]]", look())]  # a way is a place

        with Sources(look_everywhere, say, key, pause(options["remote"])) as sources:
            yield sources


def _registries(options: Mapping[str, Any], *, named: bool) -> list[str]:
    """Return the registries that flags name; those of the environment only where nothing is named at all."""
    source = click.get_current_context().get_parameter_source
    flags = ("registry_url", "registry_host", "registry_port", "endpoints_file")
    given = {name for name in flags if source(name) is click.core.ParameterSource.COMMANDLINE}
    use = given if named or given else set(flags)
    urls = list(options["registry_url"]) if "registry_url" in use else []
    is_asked = {"registry_host", "registry_port"} & use and (
        options["registry_host"] or options["registry_port"]
    )
    if is_asked and not (urls and not given):
        host = options["registry_host"] or "localhost"
        name = f"[{host}]" if ":" in host else host
        urls.append(f"http://{name}:{options['registry_port'] or REGISTRY_PORT}")
    return urls


def _usual_file(remotes: Sequence[str]) -> list[Path]:
    """Return the usual endpoints file, which counts where nothing is named.

    Raises:
        ConfigError: there is none.
    """
    if not remotes and Path(ENDPOINTS).exists():
        return [Path(ENDPOINTS)]
    raise ConfigError(
        "no servers are named",
        hint="name a job or a service (`aegis status` lists them), --registry-host HOST, or --endpoints-file FILE",
    )


def _file(file: Path) -> Source[Place]:
    from aegis.api.targets import read_endpoints  # noqa: PLC0415 - start-up time
    from aegis.registry.sources import Source  # noqa: PLC0415 - as above

    read_endpoints(file)  # a wrong one is told before anything begins
    return Source(name=str(file), at=str(file), open=lambda: contextlib.nullcontext(file))


def _found(sources: Sources) -> str:
    _, targets = sources.now()
    models = {model for target in targets for model in target.models}
    servers = f"{len(targets)} server{'' if len(targets) == 1 else 's'}"
    if not targets:
        return f"{servers} at present; those that come are found"
    names = sources.names
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"{servers} of {', '.join(sorted(models)) or 'models unknown'}, from {', '.join(names[:NAMED])}{more}"
    )
