"""`aegis top`: jobs, servers and their figures in the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.jobs import remote_option
from aegis.cli.source_options import EVERY, no_registry, open_sources, registry_options
from aegis.cli.top_keys import SORTS, View

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aegis.registry.sources import Source, Way

SECONDS = 2.0


@click.command()
@click.argument("name", metavar="[ID|SERVICE|URL]", required=False)
@registry_options("This registry; wins over host and port.")
@click.option("--once", is_flag=True, help="Print it once (the default where stdout is no terminal).")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.2),
    default=SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option(
    "--sort", type=click.Choice(SORTS), default=SORTS[0], show_default=True, help="Order of the instances."
)
@click.option(
    "--filter",
    "only",
    default="",
    metavar="TEXT",
    help="Instances with this in name, model, node, job, status or reason.",
)
@click.option("--json", "--json-mode", "as_json", is_flag=True, help="Print what /overview answers, once.")
@remote_option
def command(
    name: str | None,
    *,
    once: bool,
    interval: float,
    sort: str,
    only: str,
    as_json: bool,
    remote: str | None,
    **how: Any,
) -> None:
    """Watch jobs, servers and their figures in the terminal.

    What is looked at is a job, a service, a registry, or a gateway's URL; without any, all your jobs that run.

    On a terminal `?` shows the keys: sort, filter, scroll, quit.
    """
    view = View(sort=sort, filter=only)
    with open_sources(name, how, remote, default=EVERY) as (title, sources):
        found = sources()
        if not found:
            raise no_registry(title)
        if as_json:
            _print_json(found)
        elif once or not _is_full_terminal():
            _print_once(found, title, view)
        else:
            _watch(sources, title, view, interval)


def _is_full_terminal() -> bool:
    import os  # noqa: PLC0415 - as below

    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _print_json(found: Sequence[Source[Way]]) -> None:
    import msgspec  # noqa: PLC0415 - start-up time

    from aegis.cli.top_source import ask, look  # noqa: PLC0415 - as above

    click.echo(ask(found[0]) if len(found) == 1 else msgspec.json.encode(look(found)))


def _print_once(found: Sequence[Source[Way]], title: str, view: View) -> None:
    from rich.console import Console  # noqa: PLC0415 - start-up time

    from aegis.cli.top_source import look  # noqa: PLC0415 - as above
    from aegis.cli.top_view import Frame, Size, draw  # noqa: PLC0415 - as above

    overview = look(found)
    terminal = sys.stdout.isatty()
    console = Console()
    size = Size(console.width if terminal else None)
    for line in draw(overview, view, size, Frame(title, overview.time)).lines:
        if terminal:
            console.print(line, soft_wrap=True)
        else:
            click.echo(line.plain)


def _watch(sources: Callable[[], Sequence[Source[Way]]], title: str, view: View, seconds: float) -> None:
    from aegis.cli.top_source import Follower, look  # noqa: PLC0415 - start-up time
    from aegis.cli.top_terminal import Terminal, watch  # noqa: PLC0415 - as above

    terminal = Terminal()
    with contextlib.suppress(KeyboardInterrupt):
        follower = Follower(lambda: look(sources()), seconds, terminal.wake)
        with terminal, follower:
            watch(terminal, follower, title, view)
