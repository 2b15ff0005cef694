"""What a run says of its endpoints: rows, their summaries, CSV. Pure.

Figures have the names that `vllm bench serve` gives them in its JSON, and its units: seconds for `duration`, milliseconds
for latencies, 1/s for throughputs. What was not measured is missing, never 0.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Figures = dict[str, float]

COUNTS: Final = ("completed", "failed", "total_input_tokens", "total_output_tokens")
RATES: Final = ("request_throughput", "output_throughput", "total_token_throughput")
STATISTICS: Final = ("mean", "median", "p90", "p99")
LATENCIES: Final = ("ttft", "tpot", "itl", "e2el")
LATENCY_FIGURES: Final = tuple(f"{which}_{of}_ms" for of in LATENCIES for which in STATISTICS)
FIGURES: Final = ("completed", "failed", "duration", *RATES, *COUNTS[2:], *LATENCY_FIGURES)
ADDED_UP: Final = frozenset((*COUNTS, *RATES))  # a sum of latencies is no figure
COLUMNS: Final = ("endpoint", "statistic", "model", "node", *FIGURES, "error")
SUMMARY: Final = "SUMMARY"


class Result(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of one endpoint."""

    endpoint: str  # host:port
    model: str = ""
    node: str = ""
    instance: str = ""
    figures: Figures = {}
    error: str = ""  # why it failed, or why some of its requests did
    details: dict[str, Any] = {}  # all that `vllm bench serve` wrote

    @property
    def measured(self) -> bool:
        """Whether any request was answered."""
        return self.figures.get("completed", 0) > 0


class Summary(Struct, frozen=True, kw_only=True):
    """What the endpoints of a model, or all of them, come to.

    Of each figure the least, the greatest and the mean over the endpoints' figures; the sum, where that means something.
    """

    model: str | None  # None: all endpoints of a run of several models
    endpoints: int
    failed_endpoints: int  # those that gave no figures
    min: Figures
    max: Figures
    mean: Figures
    total: Figures


def figures_of(said: dict[str, Any]) -> Figures:
    """Return the figures out of the keys that vLLM and our own metrics share; zeros that stand for "not measured" go.

    Where no request was answered only their counts and the duration say anything.
    """
    found: Figures = {}
    for name in FIGURES:
        value = said.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    for latency in LATENCIES:
        names = [f"{which}_{latency}_ms" for which in STATISTICS]
        if not any(found.get(name) for name in names):
            found = {name: value for name, value in found.items() if name not in names}
    if found.get("completed"):
        return found
    return {name: value for name, value in found.items() if name in {"completed", "failed", "duration"}}


def summarise(results: Sequence[Result]) -> list[Summary]:
    """Return a summary of the run; of several models one for each before it."""
    models = list(dict.fromkeys(result.model for result in results if result.model))
    if len(models) < 2:  # noqa: PLR2004 - one is no comparison
        return [_summary(models[0] if models else "", results)]
    each = [_summary(model, [result for result in results if result.model == model]) for model in models]
    return [*each, _summary(None, results)]


def _summary(model: str | None, results: Sequence[Result]) -> Summary:
    columns = {
        name: [result.figures[name] for result in results if name in result.figures] for name in FIGURES
    }
    there = {name: values for name, values in columns.items() if values}
    return Summary(
        model=model,
        endpoints=len(results),
        failed_endpoints=sum(not result.measured for result in results),
        min={name: min(values) for name, values in there.items()},
        max={name: max(values) for name, values in there.items()},
        mean={name: sum(values) / len(values) for name, values in there.items()},
        total={name: sum(values) for name, values in there.items() if name in ADDED_UP},
    )


def csv_text(results: Sequence[Result]) -> str:
    """Return a row for each endpoint, then the SUMMARY rows; values that were not measured are empty.

    Every row is one line: control characters in foreign names are escaped.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in results:
        start = (_line(result.endpoint), "", _line(result.model), _line(result.node))
        writer.writerow((*start, *_cells(result.figures), _line(result.error)))
    for summary in summarise(results):
        for statistic in ("min", "max", "mean", "total"):
            start = (SUMMARY, statistic, _line(summary.model or ""), "")
            writer.writerow((*start, *_cells(getattr(summary, statistic)), _failures(summary, statistic)))
    return file.getvalue()


def _failures(summary: Summary, statistic: str) -> str:
    if statistic != "total" or not summary.failed_endpoints:
        return ""
    return f"{summary.failed_endpoints} of {summary.endpoints} endpoints failed"


def _line(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _cells(figures: Figures) -> Iterable[str]:
    for name in FIGURES:
        value = figures.get(name)
        yield "" if value is None else f"{value:.6g}" if value % 1 else str(int(value))


def as_json(results: Sequence[Result], **about: Any) -> str:
    """Return everything as one JSON object, with figures beside the names of their endpoint.

    Args:
        results: of the endpoints.
        about: further keys, put first: what was run.
    """
    value = {
        **about,
        "endpoints": [_flat(result) for result in results],
        "summary": msgspec.to_builtins(summarise(results)),
    }
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _flat(result: Result) -> dict[str, Any]:
    names = {
        "endpoint": result.endpoint,
        "model": result.model,
        "node": result.node,
        "instance": result.instance,
    }
    more = {"vllm": result.details} if result.details else {}
    return {**names, "error": result.error or None, **result.figures, **more}
