"""What `aegis bench` found, as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.bench.report import LATENCIES, RATES, summarise
from aegis.cli.render import printable, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.bench.report import Figures, Result, Summary

MOST_ROWS = 40  # of endpoints; --output has all
HEAD = (
    *("ENDPOINT", "DONE", "FAILED", "SECONDS", "REQ/S", "OUT TOK/S", "TOK/S"),
    *("TTFT", "TPOT", "ITL", "E2E"),
)
NOTE = (
    "TTFT, TPOT, ITL and E2E: median / p99 in ms; min, max and mean are over the endpoints, not over requests"
)


def text_of(results: Sequence[Result]) -> str:
    """Return a table of the endpoints with their summary, by model, and what went wrong."""
    if not any(result.measured for result in results):
        return _problems(results)
    summaries = summarise(results)
    parts = []
    for summary in summaries:
        alone = len(summaries) == 1
        mine = [each for each in results if alone or each.model == summary.model]
        parts.append(_part(summary, [(each.endpoint, *_cells(each.figures)) for each in mine]))
    parts.append(NOTE)
    if problems := _problems(results):
        parts.append(problems)
    return "\n\n".join(parts)


def _part(summary: Summary, rows: list[tuple[str, ...]]) -> str:
    left = len(rows) - MOST_ROWS
    rows = rows[:MOST_ROWS]
    if left > 0:
        rows.append((f"... {left} more: --output FILE", *[""] * (len(HEAD) - 1)))
    shown = [
        (statistic, *_cells(getattr(summary, statistic))) for statistic in ("min", "max", "mean", "total")
    ]
    name = "all models" if summary.model is None else summary.model or "no model"
    endpoints = "1 endpoint" if summary.endpoints == 1 else f"{summary.endpoints} endpoints"
    failed = f", {summary.failed_endpoints} failed" if summary.failed_endpoints else ""
    if summary.endpoints > 1 and summary.max:
        rows += shown
    return f"{printable(name)}: {endpoints}{failed}\n{table(HEAD, rows)}"


def _cells(figures: Figures) -> list[str]:
    counts = [_number(figures.get(name), 0) for name in ("completed", "failed")]
    rates = [_number(figures.get(name), 2) for name in ("duration", *RATES)]
    return [*counts, *rates, *(_latency(figures, name) for name in LATENCIES)]


def _latency(figures: Figures, name: str) -> str:
    values = [figures.get(f"{which}_{name}_ms") for which in ("median", "p99")]
    return "-" if values == [None, None] else " / ".join(_number(value, 1) for value in values)


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}"


def _problems(results: Sequence[Result]) -> str:
    lines = [printable(f"{each.endpoint}: {each.error}") for each in results if each.error]
    more = [f"... and {len(lines) - MOST_ROWS} more"] if len(lines) > MOST_ROWS else []
    return "\n".join([*lines[:MOST_ROWS], *more])
