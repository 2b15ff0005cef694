"""What a terminal shows of a sweep: a line for each point, then the table and the curve."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from aegis.bench.sweep.page import notes
from aegis.bench.sweep.table import problems
from aegis.bench.sweep.table import table as rows
from aegis.cli.render import printable, table
from aegis.planner.report.plot import Axis, Series, plot

if TYPE_CHECKING:
    from aegis.bench.sweep.document import Sweep

HEIGHT = 24


def line(sweep: Sweep, level: float) -> str:
    """Return a point in a line."""
    point = next(each for each in sweep.points if each.level == level)
    figures, error = point.figures, point.noise.get("output_throughput")
    output = figures["output_throughput"]
    start = "\r" if sys.stderr.isatty() else ""
    parts = [
        f"{start}{sweep.question.kind} {level:g}: {output:.4g} tokens/s"
        + (f" +- {error / output:.1%}" if error is not None and output else ""),
        f"TTFT {figures['mean_ttft_ms']:.4g} ms",
        f"TPOT {figures['mean_tpot_ms']:.4g} ms",
        f"{point.seconds:.1f} s",
    ]
    lines = [", ".join(parts), *(f"  {problem}" for problem in problems(point))]
    return "\n".join([*lines, f"  {point.bottleneck}"] if point.bottleneck and not point.broken else lines)


def report(sweep: Sweep) -> str:
    """Return the table, the curve and the notes."""
    told = [f"note: {printable(note)}" for note in notes(sweep)]
    drawn = _plot(sweep)
    return "\n".join([table(*rows(sweep)), *(["", drawn] if drawn else []), *told])


def _plot(sweep: Sweep) -> str:
    """Return the curve as characters: what all get over what each one gets."""
    per = sweep.all_gpus or 1
    good = [point for point in sweep.points if not point.broken and point.tokens_per_s_user]
    if not good:
        return ""
    planned = [
        (1000 / point.predicted["mean_tpot_ms"], point.predicted["output_throughput"] / per)
        for point in good
        if point.predicted.get("mean_tpot_ms")
    ]
    spots = {
        point.level: (point.tokens_per_s_user, point.figures["output_throughput"] / per) for point in good
    }
    series = [Series("planned", ".", planned)] if planned else []
    series.append(Series("measured", "•", list(spots.values())))
    if sweep.best is not None:
        series.append(
            Series(
                f"within the targets: {sweep.question.kind} {sweep.best.level:g}",
                "x",
                [spots[sweep.best.level]],
            )
        )
    points = [point for each in series for point in each.points]
    unit = "tokens/s/gpu" if sweep.all_gpus else "tokens/s"
    return plot(
        series,
        Axis("tokens/s/user", _end(max(x for x, _ in points)), 4),
        Axis(unit, _end(1.15 * max(y for _, y in points)), 5),
        title=f"{printable(sweep.question.model)}: {unit} vs tokens/s/user",
        height=HEIGHT,
    )


def _end(value: float) -> float:
    """Return where an axis ends: two digits, the second one even or 5."""
    power: float = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value)
