"""`aegis plan diff`: two plans side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aegis.cli.render import print_json, table
from aegis.planner.difference import differences, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.difference import Change, Difference


@click.command()
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, one element for each experiment.")
def command(before: Path, after: Path, as_json: bool) -> None:
    """Compare the best configurations of two plans: folders that --save-dir wrote, or files of --json."""
    found = differences(load(before), load(after))
    if as_json:
        import msgspec  # noqa: PLC0415 - only for JSON

        print_json(msgspec.to_builtins(found))
    else:
        click.echo("\n\n".join("\n".join(_lines(each)) for each in found))


def _lines(difference: Difference) -> Iterator[str]:
    yield difference.experiment
    if difference.only_in:
        yield f"  only in {difference.only_in}"
    elif not difference.settings and not difference.figures:
        yield "  the same"
    rows = [_row(each) for each in (*difference.settings, *difference.figures)]
    if rows:
        yield "\n".join(f"  {line}" for line in table(("", "A", "B", "CHANGE"), rows).splitlines())


def _row(change: Change) -> tuple[str, ...]:
    relative = "" if change.relative is None else f"{change.relative:+.1%}"
    return (change.column, _text(change.before), _text(change.after), relative)


def _text(value: object) -> str:
    return "-" if value is None or value == "" else f"{value:g}" if isinstance(value, float) else str(value)
