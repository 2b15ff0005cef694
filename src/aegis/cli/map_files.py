"""`aegis map --script`: a program of the user's for each file, next to the servers or from here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from aegis.cli.flags import with_flags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

OF_ROWS: Final = ("system", "kind", "max_tokens", "temperature", "param", "id_column", "concurrency")


def files_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say which program is run for each file."""
    options = (
        click.option("--script", metavar="COMMAND", help="Run this for each input file instead, with {input} {output} {base_url} {host} {port} {model} {api_key_file} filled in. --output is then a directory."),
        click.option("--slots", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Files at once per instance (--script)."),
        click.option("--archive", type=click.Choice(["tar.gz", "tar", "dir"]), default="tar.gz", show_default=True, help="How what a program left in {output} is kept (--script)."),
        click.option("--where", type=click.Choice(["auto", "here", "nodes"]), default="auto", show_default=True, help="Run programs on this machine, or each next to its instance; auto: there, inside the job of the servers (--script)."),
        click.option("--scratch", metavar="DIR", help="Where {output} is made (--script).  [default: $TMPDIR, else /dev/shm]"),
        click.option("--keep-logs", is_flag=True, help="Keep what programs print also of files that succeed (--script)."),
    )  # fmt: skip
    return with_flags(function, options)


def run_files_mode(
    inputs: Iterable[Path], handle: str | None, how: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Run the program for every file.

    Args:
        inputs: files; each is looked at once.
        handle: the job whose servers are used.
        how: what `server_options` gave.
        options: of the command, by name.

    Raises:
        PartialSuccess: files are left, or failed.
        AegisError: it cannot go on; nothing that is done is lost.
    """
    given = [name for name in OF_ROWS if options.get(name) not in {None, ()}]
    if given:
        raise click.UsageError(f"--{given[0].replace('_', '-')} is for rows, not for --script")
    if options["output"] is None:
        raise click.UsageError("say where the results go: --output DIR")
    from aegis.cli.map_files_run import Files  # noqa: PLC0415 - start-up time
    from aegis.mapper.files.script import Script  # noqa: PLC0415 - as above

    Files(Script.parse(options["script"]), handle, how, options).work(inputs)
