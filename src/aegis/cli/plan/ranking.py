"""How systems are shown that answer one question: a line each, the best first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import click

from aegis.cli.render import print_json, shortened, table
from aegis.errors import AegisError
from aegis.planner.report.words import ALIKE, INTERVAL, between, configuration
from aegis.planner.search.pick import told_apart

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.planner.answer import Candidate
    from aegis.planner.everywhere import Ranked

Row: TypeAlias = tuple[object, ...]
HEAD = (
    *("SYSTEM", "TOKENS/S/GPU", "TOKENS/S/USER", "TTFT", "TPOT"),
    *("MODE", "BACKEND", "WEIGHTS", "EACH REPLICA"),
)


def give_ranking(ranked: Sequence[Ranked], *, as_json: bool) -> None:
    """Print what every system makes of a question.

    Raises:
        AegisError: none of them meets the targets.
    """
    if as_json:
        print_json({each.system: _document(each) for each in ranked})
    else:
        _print(ranked)
    if not any(each.plan and each.plan.meets_targets for each in ranked):
        raise AegisError("no system meets the targets", hint="allow for more with --ttft and --tpot")


def _print(ranked: Sequence[Ranked]) -> None:
    shown = [each for each in ranked if each.plan and each.plan.meets_targets]
    rows = [_row(each) for each in shown]
    if rows and any(each.known.spread for each in shown):
        click.echo(table((*HEAD[:2], INTERVAL, "MEASURED", *HEAD[2:]), _with_intervals(shown, rows)))
    elif rows:
        click.echo(table(HEAD, rows))
    for each in ranked:
        if each.why_none:
            click.echo(f"{each.system}: {shortened(each.why_none, 200)}", err=True)
    for note in dict.fromkeys(note for each in shown for note in each.notes):
        click.echo(f"note: {note}", err=True)


def _with_intervals(shown: Sequence[Ranked], rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows with two columns more; marked where a system cannot be told apart from the first."""
    for each, row in zip(shown, rows, strict=True):
        alike = each is not shown[0] and not told_apart(shown[0].known, each.known)
        interval = between(*each.known) + f" {ALIKE}" * alike
        best = each.plan.best if each.plan else None
        yield (*row[:2], interval, best.measured if best and interval else "", *row[2:])


def _row(ranked: Ranked) -> Row:
    plan = ranked.plan
    assert plan is not None  # noqa: S101 - only those are shown
    assert plan.best is not None  # noqa: S101 - it meets the targets
    best = plan.best
    return (
        f"{ranked.system}{f' (estimated, +-{ranked.uncertainty:.0%})' if ranked.uncertainty else ''}",
        f"{ranked.throughput:.2f}",
        f"{best.tokens_per_s_user:.2f}",
        f"{best.ttft:.0f} ms",
        f"{best.tpot:.2f} ms",
        best.mode,
        best.workers[-1].backend,
        _weights(best),
        configuration(best),
    )


def _weights(best: Candidate) -> str:
    """Return the formats of the decode workers' weights: those of dense layers, and of experts where they differ."""
    formats, split = best.workers[-1].quantization, best.workers[-1].parallel
    both = formats.moe != formats.gemm and split.moe_tp * split.moe_ep > 1
    return f"{formats.gemm}, experts {formats.moe}" if both else formats.gemm


def _document(ranked: Ranked) -> dict[str, Any]:
    rows = ranked.plan.to_dict() if ranked.plan else {}
    return {
        "estimated": bool(ranked.uncertainty),
        "uncertainty": ranked.uncertainty,
        "why_none": ranked.why_none,
        **rows,
    }
