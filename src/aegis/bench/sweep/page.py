"""A sweep as one page of HTML that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aegis.bench.sweep.table import problems, table
from aegis.page import filled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.bench.sweep.document import Point, Sweep


def page(sweep: Sweep) -> str:
    """Return the page."""
    return filled("sweep.html", sweep.question.model, _picture(sweep))


def _picture(sweep: Sweep) -> dict[str, Any]:
    """Return what the page draws."""
    head, rows = table(sweep)
    return {
        "title": sweep.question.model,
        "subtitle": " · ".join(described(sweep)),
        "kind": sweep.question.kind,
        "gpus": sweep.all_gpus,
        "servers": len(sweep.question.servers),
        "targets": msgspec.to_builtins(sweep.targets),
        "cards": list(_cards(sweep)),
        "points": [_point(sweep, point) for point in sweep.points],
        "head": head,
        "rows": rows,
        "notes": list(notes(sweep)),
    }


def described(sweep: Sweep) -> Iterator[str]:
    """Yield what was measured, in words."""
    asked = sweep.question
    yield f"{len(asked.servers)} server{'s' * (len(asked.servers) > 1)}"
    if sweep.gpus:
        yield f"{sweep.gpus} GPU{'s' * (sweep.gpus > 1)} each"
    if asked.dataset == "random":
        yield f"random prompts of {asked.input_tokens} + {asked.output_tokens} tokens"
    else:
        yield f"{asked.dataset} prompts of {Path(asked.path).name}"
    yield "chat" if asked.chat else "completions"
    targets = sweep.targets
    for name, limit in (("TTFT", targets.ttft), ("TPOT", targets.tpot)):
        if limit is not None:
            yield f"{targets.statistic} {name} ≤ {limit:g} ms"
    if sweep.plan:
        plan = sweep.plan
        yield f"plan: {plan.split} of {plan.system} with {plan.backend} {plan.version}".rstrip()
    if sweep.points:
        yield sweep.points[0].began[:10]


def notes(sweep: Sweep) -> Iterator[str]:
    """Yield what a reader must know besides the figures."""
    if sweep.targets and sweep.best is None and sweep.points:
        yield "no point meets the targets"
    if sweep.end:
        yield f"end: {sweep.end}"
    for point in sweep.points:
        at = f"{sweep.question.kind} {point.level:g}"
        yield from (f"{at}: {problem}" for problem in problems(point))
        if point.broken:
            continue
        if point.bottleneck:
            yield f"{at}: {point.bottleneck} (!)"
        if point.slices and not point.noise:
            yield f"{at}: too short to say how sure its figures are"
    if sweep.plan:
        yield "plan: what is predicted, as a multiple of what was measured"
        yield from (f"plan: {note}" for note in sweep.plan.notes)
        if any(not point.predicted for point in sweep.points):
            yield "plan: nothing is predicted where it is empty: more than the plan's server can take"
    if sweep.machine:
        yield "measured from " + ", ".join(f"{name} {value}" for name, value in sweep.machine.items())


def _cards(sweep: Sweep) -> Iterator[tuple[str, str]]:
    good = [point for point in sweep.points if not point.broken]
    if not good:
        return
    kind = sweep.question.kind
    most = max(good, key=lambda each: each.figures["output_throughput"])
    yield f"{most.figures['output_throughput']:.4g}", f"output tokens/s at most ({kind} {most.level:g})"
    best = sweep.best
    if sweep.targets:
        shown = f"{best.figures['output_throughput']:.4g}" if best else "none"
        yield shown, f"within the targets{f' ({kind} {best.level:g})' if best else ''}"
    if best and sweep.all_gpus:
        yield f"{best.figures['output_throughput'] / sweep.all_gpus:.4g}", "of it per GPU"
    first = good[0]
    yield f"{first.figures['mean_ttft_ms']:.3g} ms", f"TTFT at {kind} {first.level:g}"
    yield f"{first.figures['mean_tpot_ms']:.3g} ms", f"TPOT at {kind} {first.level:g}"


def _point(sweep: Sweep, point: Point) -> dict[str, Any]:
    figures = point.figures
    facts = [
        ("requests/s", f"{figures['request_throughput']:.3g}"),
        ("output tokens/s", f"{figures['output_throughput']:.4g}"),
        ("tokens/s of a user", f"{point.tokens_per_s_user:.3g}"),
        ("TTFT mean / p99", f"{figures['mean_ttft_ms']:.4g} / {figures['p99_ttft_ms']:.4g} ms"),
        ("TPOT mean / p99", f"{figures['mean_tpot_ms']:.4g} / {figures['p99_tpot_ms']:.4g} ms"),
        ("requests", f"{figures['completed']:.0f} count, {point.failed} failed"),
    ]
    facts += [("generator", "was the bottleneck")] * bool(point.bottleneck)
    return {
        **msgspec.to_builtins(point),
        "ratios": point.ratios,
        "broken": point.broken,
        "sla": point == sweep.best,
        "facts": facts,
    }
