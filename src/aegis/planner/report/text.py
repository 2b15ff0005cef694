"""What the terminal shows of a plan: the comparison, the Pareto frontier, and how to deploy the best configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.report.plot import Axis, Series, plot, round_up
from aegis.planner.report.table import NOTE, Style, boxed, equals, table
from aegis.planner.report.words import figure, printable, support
from aegis.planner.search.pick import told_apart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.answer import Candidate, ModeAnswer
    from aegis.planner.plan import Plan
    from aegis.planner.task import Experiment

WIDTH = 80
_PLOT_HEIGHT = 30
_MOST_SERIES = 10  # more than these hide each other
_MARKERS = "•fhlsx"
_TALLER, _WIDER = 1.2, 1.1  # the axes reach beyond the points, and end on these multiples
_Y_STEP, _X_STEP = 50, 20
_EXPLAINED = """\
    (p) stands for prefill, (d) stands for decode, bs stands for batch size, a replica stands for the smallest scalable unit xPyD of the disagg system
    Some math: total gpus used = replicas * gpus/replica
               gpus/replica = (p)gpus/worker * (p)workers + (d)gpus/worker * (d)workers; for Agg, gpus/replica = gpus/worker
               gpus/worker = tp * pp * dp = etp * ep * pp for MoE models; tp * pp for dense models (underlined {numbers} are the actual values in math)"""


def report(plan: Plan, *, width: int | None = None, color: bool = False) -> str:
    """Return the report of a plan.

    Args:
        plan: what to show; at least one experiment.
        width: of the terminal; None: tables are as wide as they are.
        color: bold and underlined text.
    """
    style = Style(color)
    rule = f"  {'-' * (WIDTH - 4)}"
    parts = [
        "*" * WIDTH,
        f"*{'Plan':^{WIDTH - 2}}*",
        "*" * WIDTH,
        rule,
        *_question(plan, style),
        rule,
        *_best(plan),
        *_notes(plan),
        rule,
        *_frontier(plan, min(width or WIDTH, WIDTH)),
        rule,
        "  Deployment Details:",
        _EXPLAINED.format(numbers=style.underlined("numbers")),
        *_tables(plan, width, style),
        "*" * WIDTH,
    ]
    return "\n".join(parts)


def _question(plan: Plan, style: Style) -> Iterator[str]:
    experiment = plan.experiments[plan.chosen or 0]
    yield "  Input Configuration & SLA Target:"
    yield f"    Model: {printable(experiment.model_name)} (is_moe: {experiment.model.has_experts})"
    yield f"    Total GPUs: {experiment.total_gpus}"
    yield f"    Best Experiment Chosen: {style.bold(_choice(plan))}"


def _choice(plan: Plan) -> str:
    if plan.chosen is None:
        return "none"
    said = f"{plan.answers[plan.chosen].name} at {figure(*_throughput(plan, plan.chosen))}"
    if not plan.answers[plan.chosen].meets_targets:
        return f"{said}, which misses the targets"
    if not plan.compared:
        return said
    if plan.ratio is None:
        other = next((each for each in plan.answers if not each.best), None)
        return f"{said} ({other.name}: nothing found)" if other else said
    equal = [
        answer.name
        for index, answer in enumerate(plan.answers)
        if index != plan.chosen and not told_apart(plan.known(plan.chosen), plan.known(index))
    ]
    if equal:
        return f"{said} (cannot be told apart from {equal[0]})"
    return f"{said} ({max(plan.ratio, 1 / plan.ratio):.2f}x better)"


def _throughput(plan: Plan, index: int) -> tuple[float, str, float]:
    value, spread = plan.known(index)
    return value, " tokens/s/gpu", spread


def _best(plan: Plan) -> Iterator[str]:
    best = plan.best
    if best is not None and plan.chosen is not None:
        yield "  Overall Best Configuration:"
        behind = f" (80 %), {support(best.measured, best.spread)}" if best.spread else ""
        yield f"    - Best Throughput: {figure(*_throughput(plan, plan.chosen))}{behind}"
        yield f"    - User Throughput: {figure(best.tokens_per_s_user, ' tokens/s/user', best.tpot_spread)}"
        yield f"    - TTFT: {figure(best.ttft, 'ms', best.ttft_spread)}"
        yield f"    - TPOT: {figure(best.tpot, 'ms', best.tpot_spread)}"
        if plan.experiments[plan.chosen].targets.request_latency is not None:
            yield f"    - Request Latency: {best.request_latency:.2f}ms"


def _notes(plan: Plan) -> Iterator[str]:
    notes = [
        *(f"{each.name}: {each.why_none}" for each in plan.answers if each.why_none),
        *(note for each in plan.answers for note in each.notes),
        *(note for each in plan.answers for candidate in each.best[:1] for note in candidate.notes),
    ]
    if notes:
        yield "  Notes:"
        yield from (f"    - {printable(note)}" for note in dict.fromkeys(notes))


def _frontier(plan: Plan, width: int) -> Iterator[str]:
    drawn = [each for each in plan.answers if each.frontier]
    if not drawn or len(drawn) > _MOST_SERIES:
        return
    series = [
        Series(each.name, _MARKERS[index % len(_MARKERS)], [_point(point) for point in each.frontier])
        for index, each in enumerate(drawn)
    ]
    if plan.best is not None and plan.chosen is not None:
        series.append(Series(f"{plan.answers[plan.chosen].name} best", "x", [_point(plan.best)]))
    points = [point for each in series for point in each.points]
    model = printable(plan.experiments[plan.chosen or 0].model_name)
    yield "  Pareto Frontier:"
    yield plot(
        series,
        Axis("tokens/s/user", round_up(max(x for x, _ in points) * _WIDER, _X_STEP), 4),
        Axis("tokens/s/gpu", round_up(max(y for _, y in points) * _TALLER, _Y_STEP), 6),
        title=f"{model} Pareto Frontier: tokens/s/gpu vs tokens/s/user",
        width=width,
        height=_PLOT_HEIGHT,
    )


def _point(candidate: Candidate) -> tuple[float, float]:
    return candidate.tokens_per_s_user, candidate.tokens_per_s_gpu


def _tables(plan: Plan, width: int | None, style: Style) -> Iterator[str]:
    for experiment, answer in zip(plan.experiments, plan.answers, strict=True):
        yield ""
        yield _table(experiment, answer, width, style)


def _table(experiment: Experiment, answer: ModeAnswer, width: int | None, style: Style) -> str:
    if not answer.best:
        return f"No configurations for {answer.name}: {answer.why_none}"
    alike = equals(experiment, answer)
    order = f"Sorted by tokens/s/gpu{f'; {NOTE}' if alike else ''}"
    if not answer.meets_targets:
        target = "TPOT" if experiment.targets.request_latency is None else "request latency"
        order = f"none meets the targets; sorted by {target}"
    head, rows = table(experiment, answer.best, style, alike)
    return f"{answer.name} Top Configurations: ({order})\n{boxed(head, rows, width)}"
