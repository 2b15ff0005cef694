"""What every command on jobs shares: the way to them, here or through ssh."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

from aegis.errors import InterruptedByUser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aegis.fleet.jobs import Jobs


def say(line: str) -> None:
    """Tell progress: stdout is for data."""
    click.echo(line, err=True)


@contextlib.contextmanager
def waiting_for(handle: str) -> Iterator[None]:
    """Say that a job goes on when whoever waits for it has enough.

    Raises:
        InterruptedByUser: that was so.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedByUser(
            f"interrupted; job {handle} goes on",
            hint=f"`aegis wait {handle}` waits again, `aegis shutdown {handle}` ends it",
        ) from None


def remote_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--remote`."""
    return click.option(
        "--remote",
        metavar="USER@HOST",
        help="Jobs of this login node, through ssh: one prompt, one connection.",
    )(function)


@contextlib.contextmanager
def open_jobs(remote: str | None) -> Iterator[Jobs]:
    """Yield the jobs of this machine, or of one at the far end of a connection that is closed at the end."""
    from aegis.fleet.jobs import Jobs  # noqa: PLC0415 - start-up time

    if remote is None:
        yield Jobs(os.environ)
        return
    from aegis.schedulers.ssh import connect  # noqa: PLC0415 - only with --remote

    with connect(remote, say) as transport:
        yield Jobs(os.environ, transport)
