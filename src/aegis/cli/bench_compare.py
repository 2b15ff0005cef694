"""`aegis bench compare`: what changed between two measurements, and whether it is more than noise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aegis.cli.render import print_json, printable, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.bench.compare import Change, Comparison

_PATH = click.Path(path_type=Path)
HEAD = ("", "BEFORE", "AFTER", "CHANGE", "NOISE", "")


@click.command()
@click.argument("before", type=_PATH, metavar="A")
@click.argument("after", type=_PATH, metavar="B")
@click.option(
    "--fail-above",
    type=click.FloatRange(min=0),
    metavar="PCT",
    help="Exit with 1 if a figure is worse by more than so many percent, and by more than its noise.",
)
@click.option(
    "--every-figure", is_flag=True, help="All percentiles, gaps between tokens and total tokens too."
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(before: Path, after: Path, *, fail_above: float | None, every_figure: bool, form: str) -> None:
    """Compare two measurements, A before and B after, figure by figure.

    A and B are folders (or the sweep.json) of `aegis bench sweep`, CSV or JSON outputs of `aegis bench`, or results of `vllm
    bench serve`. The noise is what happens by chance in 99 of 100 cases, from the slices of a sweep, or from the endpoints
    of a run; what was measured once is given 5 %, marked with ?. No change below 1 % counts.

    \b
    aegis bench compare monday tuesday --fail-above 5
    """  # noqa: D301 - \\b keeps click from filling the line
    from aegis.bench.compare import CHIEF, compare  # noqa: PLC0415 - start-up time
    from aegis.bench.measurements import FIGURES, load  # noqa: PLC0415 - as above
    from aegis.errors import AegisError  # noqa: PLC0415 - as above

    found = compare(load(before), load(after), FIGURES if every_figure else CHIEF)
    for each in found.differently:
        click.echo(f"note: asked differently: {printable(each)}", err=True)
    if form == "json":
        import msgspec  # noqa: PLC0415 - only for JSON

        print_json(msgspec.to_builtins(found))
    else:
        click.echo("\n".join(_text(found)))
    if not found.changes:
        raise AegisError("there is no load that both have measured", hint="; ".join(_only(found)) or None)
    losses = [each for each in found.changes if fail_above is not None and 100 * each.loss > fail_above]
    if losses:
        told = "\n".join(f"{each.load}: {_title(each.figure)} {_row(each)[3]}" for each in losses)
        sys.stdout.flush()
        raise AegisError(f"worse by more than {fail_above:g} %:\n{told}")


def _text(found: Comparison) -> Iterator[str]:
    """Yield a table for each load, and the sum of it."""
    yield f"A {printable(found.before)}"
    yield f"B {printable(found.after)}"
    # One table, so that all columns stand below each other.
    loads = list(dict.fromkeys(each.load for each in found.changes))
    rows: list[tuple[str, ...]] = []
    for load in loads:
        rows.append((load, *("",) * (len(HEAD) - 1)))
        rows += [_row(each) for each in found.changes if each.load == load]
    yield ""
    yield table(HEAD, rows)
    yield ""
    yield from _only(found)
    yield ", ".join(f"{found.count(verdict)} {verdict}" for verdict in ("better", "worse", "within noise"))


def _only(found: Comparison) -> Iterator[str]:
    for side, names in (("A", found.only_before), ("B", found.only_after)):
        if names:
            yield f"only in {side}: {printable(', '.join(names))}"


def _row(change: Change) -> tuple[str, ...]:
    return (
        f"  {_title(change.figure)}",
        _value(change.figure, change.before),
        _value(change.figure, change.after),
        f"{change.after - change.before:+g}" if change.figure == "failed" else _percent(change.change),
        "" if change.figure == "failed" else f"{change.noise:.1%}{'?' * change.guessed}",
        change.verdict,
    )


def _title(figure: str) -> str:
    """Return a figure in words: `TTFT p99`, `output tokens/s`."""
    rates = {
        "request_throughput": "requests/s",
        "output_throughput": "output tokens/s",
        "total_token_throughput": "all tokens/s",
        "failed": "failed requests",
    }
    if figure in rates:
        return rates[figure]
    statistic, name, _ = figure.split("_")
    return f"{'E2E' if name == 'e2el' else name.upper()} {statistic}"


def _value(figure: str, value: float) -> str:
    return f"{value:.4g} ms" if figure.endswith("_ms") else f"{value:.4g}"


def _percent(change: float | None) -> str:
    return "new" if change is None else f"{change:+.1%}"
