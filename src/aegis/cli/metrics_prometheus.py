"""`aegis metrics --prometheus`: the file that tells Prometheus what to scrape, once or for as long as it is watched."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.jobs import say
from aegis.cli.render import printable
from aegis.cli.source_options import no_registry, open_sources
from aegis.errors import AegisError, SiteError
from aegis.files import write_atomically
from aegis.fleet.metrics.discovery import Discovery, file_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.fleet.metrics.discovery import Group

STDOUT = "-"


def write_targets(
    file: str, name: str | None, how: Mapping[str, Any], remote: str | None, watch: float | None
) -> None:
    """Write the targets of a job, a service or a registry; again whenever they change, where it is to be watched.

    Args:
        file: where to; `-` is stdout.
        name: job or service; None: a registry is named by `how`.
        how: registry_url, registry_host, registry_port, token_file.
        remote: USER@HOST whose jobs are meant.
        watch: seconds between two looks; None: one look.

    Raises:
        ConfigError: both are named, or neither.
        NotFoundError: there is no such job or service.
        SiteError: it has no registry, or none answers.
        AegisError: the file cannot be written.
    """
    with open_sources(name, how, remote) as (meant, sources):
        discovery = Discovery(sources)
        found = discovery.look()
        if not found:  # a file without targets would silence every alert
            raise (
                SiteError("\n".join(discovery.problems.values()))
                if discovery.problems
                else no_registry(meant)
            )
        _write(file, found)
        written: Sequence[Group] = found
        told = _tell(discovery.problems, {})
        if file != STDOUT:
            say(printable(f"{len(found)} targets in {file}"))
        with contextlib.suppress(KeyboardInterrupt):
            while watch:
                time.sleep(watch)
                written, told = _again(discovery, file, written, told)


def _again(
    discovery: Discovery, file: str, written: Sequence[Group], told: Mapping[str, str]
) -> tuple[Sequence[Group], dict[str, str]]:
    """Look again; return what stands in the file then, and what is wrong. Nothing ends the watch but Ctrl-C."""
    trouble: dict[str, str] = {}
    try:
        found = discovery.look()
        trouble |= discovery.problems
        if found != written:
            _write(file, found)
            written = found
            say(f"{time.strftime('%H:%M:%S')} {len(found)} targets")
    except AegisError as error:
        trouble[""] = error.message
    return written, _tell(trouble, told)


def _tell(trouble: Mapping[str, str], told: Mapping[str, str]) -> dict[str, str]:
    """Tell on stderr what has gone wrong since, by its source, and return all that is."""
    for source, problem in trouble.items():
        if source not in told:
            say(printable(f"warning: {problem}; the targets named last stand"))
    return dict(trouble)


def _write(file: str, found: Sequence[Group]) -> None:
    text = file_text(found)
    if file == STDOUT:
        click.echo(text, nl=False)
        return
    path = Path(os.path.realpath(file))  # through a link, as another program would write it
    try:
        write_atomically(path, text)
    except OSError as error:
        raise AegisError(
            f"--prometheus: {file} cannot be written: {error.strerror}",
            hint="its folder must exist, and be yours to write in",
        ) from None
