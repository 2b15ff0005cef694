"""`aegis logs`: what a job and its servers wrote."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from aegis.errors import NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.runs import RunDir

CHUNK = 1 << 16
FOLLOW_SECONDS = 0.2


@click.command()
@click.argument("handle")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@click.option("--instance", metavar="NAME", help="The log of this server (a name of `aegis status HANDLE`).")
@click.option("-n", "--lines", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
def command(handle: str, follow: bool, instance: str | None, lines: int | None) -> None:
    """Print the log of a job, or of one of its servers."""
    from aegis.runs import find_run  # noqa: PLC0415 - start-up time

    run = find_run(handle, os.environ)
    file = _instance_log(run, instance) if instance else run.err
    position = _print_end(file, lines) if lines is not None else _print_from(file, 0)
    while follow:
        import time  # noqa: PLC0415 - start-up time

        from aegis.runs import ENDED  # noqa: PLC0415 - start-up time
        from aegis.schedulers.local import status_of  # noqa: PLC0415 - start-up time

        ended = status_of(run.read_manifest()).state in ENDED
        position = _print_from(file, position)
        if ended:
            return
        time.sleep(FOLLOW_SECONDS)


def _instance_log(run: RunDir, instance: str) -> Path:
    from aegis.spec.suggest import did_you_mean  # noqa: PLC0415 - start-up time

    logs = {file.stem: file for file in sorted(run.instances.glob("*.log"))}
    if instance in logs:
        return logs[instance]
    hint = did_you_mean(instance, logs) or (f"one of {', '.join(logs)}" if logs else "none has started yet")
    raise NotFoundError(f"there is no log of an instance `{instance}`", hint=hint)


def _print_from(file: Path, position: int) -> int:
    """Print a file from a position on; return where it ends now."""
    try:
        with file.open("rb") as stream:
            stream.seek(position)
            while chunk := stream.read(CHUNK):
                click.echo(chunk, nl=False)
                position += len(chunk)
    except FileNotFoundError:
        return position
    return position


def _print_end(file: Path, lines: int) -> int:
    """Print the last lines of a file, reading it from its end; return its size."""
    try:
        with file.open("rb") as stream:
            size = start = stream.seek(0, os.SEEK_END)
            tail = b""
            while start > 0 and tail.count(b"\n") <= lines:
                step = min(CHUNK, start)
                start -= step
                stream.seek(start)
                tail = stream.read(step) + tail
    except FileNotFoundError:
        return 0
    kept = tail.splitlines(keepends=True)[-lines:] if lines else []
    click.echo(b"".join(kept), nl=False)
    return size
