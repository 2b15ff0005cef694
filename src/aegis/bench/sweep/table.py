"""A sweep as rows: sweep.csv, and the table that a terminal shows. Pure."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.bench.sweep.document import Point, Sweep

LATENCIES: Final = ("ttft", "tpot", "itl", "e2el")
STATISTICS: Final = ("mean", "median", "p90", "p99")
COUNTED: Final = ("completed", "failed", "duration", "request_throughput", "output_throughput")
FIGURES: Final = (
    *COUNTED,
    "total_token_throughput",
    *(f"{statistic}_{name}_ms" for name in LATENCIES for statistic in STATISTICS),
)
PREDICTED: Final = (
    *("request_throughput", "output_throughput", "mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms"),
)


def rows(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Yield a row for each point; None where something is not known."""
    asked = sweep.question
    for point in sweep.points:
        output = point.figures["output_throughput"]
        error = point.noise.get("output_throughput")
        yield {
            "model": asked.model,
            "servers": len(asked.servers),
            "concurrency": point.level if asked.kind == "concurrency" else None,
            "rate": point.level if asked.kind == "rate" else None,
            **{name: point.figures[name] for name in FIGURES},
            "tokens_per_s_user": point.tokens_per_s_user,
            "tokens_per_s_gpu": output / sweep.all_gpus if sweep.all_gpus else None,
            "throughput_noise": error / output if error is not None and output else None,
            "slices": point.slices,
            "sla": int(point == sweep.best) if sweep.targets else None,
            "bottleneck": point.bottleneck or "",
            "error": "; ".join(problems(point)),
            **{f"predicted_{name}": point.predicted.get(name) for name in PREDICTED},
            **{f"ratio_{name}": point.ratios.get(name) for name in PREDICTED},
        }


def csv_text(sweep: Sweep) -> str:
    """Return sweep.csv: a row for each point, empty where something is not known."""
    text = io.StringIO()
    found = [{name: _cell(value) for name, value in row.items()} for row in rows(sweep)]
    if found:
        writer = csv.DictWriter(text, fieldnames=list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    return text.getvalue()


def problems(point: Point) -> list[str]:
    """Return what went wrong, for each server where something did."""
    return [
        f"{server.address}: {server.failed} requests failed: {server.error}"
        for server in point.servers
        if server.failed
    ]


def table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return head and rows for a terminal; the SLA point has a star."""
    planned = any(point.predicted for point in sweep.points)
    head = [
        *(sweep.question.kind.upper(), "REQUESTS/S", "TOKENS/S", "+-"),
        *(["/GPU"] if sweep.all_gpus else []),
        *("/USER", "TTFT MEAN", "P99", "TPOT MEAN", "P99", "E2E MEAN", "FAILED"),
        *(["PLAN: TTFT", "TPOT", "TOKENS/S"] if planned else []),
        "",
    ]
    return head, [_line(sweep, point, planned=planned) for point in sweep.points]


def _line(sweep: Sweep, point: Point, *, planned: bool) -> list[str]:
    figures = point.figures
    output = figures["output_throughput"]
    error = point.noise.get("output_throughput")
    marks = [
        "*" * (point == sweep.best),
        "!" * bool(point.bottleneck and not point.broken),
        "failed" * point.broken,
    ]
    return [
        f"{point.level:g}",
        f"{figures['request_throughput']:.3g}" if output else "-",
        f"{output:.4g}" if output else "-",
        f"{error / output:.1%}" if error is not None and output else "?",
        *([f"{output / sweep.all_gpus:.4g}"] if sweep.all_gpus else []),
        f"{point.tokens_per_s_user:.3g}" if output else "-",
        *(
            f"{figures[name]:.4g} ms" if figures["completed"] else "-"
            for name in ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_e2el_ms")
        ),
        f"{point.failed}",
        *(
            [_ratio(point, name) for name in ("mean_ttft_ms", "mean_tpot_ms", "output_throughput")]
            if planned
            else []
        ),
        " ".join(filter(None, marks)),
    ]


def _ratio(point: Point, name: str) -> str:
    return f"x{point.ratios[name]:.2f}" if name in point.ratios else "-"


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
