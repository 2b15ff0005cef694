"""`aegis plan accuracy`: how far predictions are from deployments that were measured."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.plan.options import PlanCommand, Progress
from aegis.cli.render import print_json, table
from aegis.errors import AegisError, NotFoundError
from aegis.planner.problem import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aegis.planner.silicon.deployments import Deployment
    from aegis.planner.silicon.score import Counted, Outcome, Score

HEAD = ("ROWS", "TPOT", "MEAN", "TTFT", "TOKENS/S/GPU", "BIAS", "IN 80%", "ORDER")
FEW = 20  # rows that say little of others


@click.command(cls=PlanCommand)
@click.option("--system", metavar="NAME", help="Only of this system.")
@click.option("--backend", type=click.Choice(BACKENDS), help="Only of this engine.")
@click.option(
    "--model", metavar="NAME|ID", help="Only of this model: a name of the guide or a Hugging Face id."
)
@click.option("--all", "both", is_flag=True, help="Also the half that the estimator was fitted to.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(system: str | None, backend: str | None, model: str | None, both: bool, as_json: bool) -> None:
    """Compare predictions with the measured deployments that come along: by default, those the estimator has not seen.

    Errors are shares of what was measured: the median, of TPOT also the mean; BIAS and IN 80% (how many lie within the
    interval that a plan prints) are those of tokens/s of a GPU; ORDER is the rank correlation over the configurations of
    one model and system, 1 where they are ranked as measured.

    \b
    aegis plan accuracy --system h200_sxm
    """  # noqa: D301 - \\b keeps click from filling the line
    from aegis.planner.silicon.deployments import shipped  # noqa: PLC0415 - start-up time
    from aegis.planner.silicon.score import by_group, counted, of_test_half, score  # noqa: PLC0415

    wanted = _wanted(system, backend, model)
    found = counted(shipped(), lambda row: (both or of_test_half(row)) and wanted(row))
    outcomes, silent = _predicted(found)
    if not outcomes:
        raise _nothing(system, backend, model)
    narrow = any((system, backend, model))
    groups = by_group(
        outcomes, lambda row: (row.system, row.backend, row.model) if narrow else (row.system, row.backend)
    )
    scores = {name: score(group) for name, group in groups.items()}
    total = score(outcomes)
    if as_json:
        print_json(_document(scores, total, found, silent, both=both))
        return
    click.echo(_report(scores, total))
    click.echo(f"\n{_left_out(found, silent, both=both)}")
    click.echo(_conclusion(total, both=both))


def _wanted(system: str | None, backend: str | None, model: str | None) -> Callable[[Deployment], bool]:
    """Return what tells the rows that are asked for.

    Raises:
        ConfigError: nobody knows the system or the model.
    """
    from aegis.planner.models.resolve import find_model, served_from  # noqa: PLC0415 - start-up time
    from aegis.planner.systems import load_system  # noqa: PLC0415

    if system is not None:
        load_system(system)
    if model is not None:
        find_model(model)
        model = served_from(model)

    def wanted(row: Deployment) -> bool:
        return (
            system in {None, row.system}
            and backend in {None, row.backend}
            and model in {None, served_from(row.model)}
        )

    return wanted


def _predicted(found: Counted) -> tuple[list[Outcome], dict[str, int]]:
    """Return the predictions of rows, and how many have none, by reason."""
    from aegis.planner.silicon.predict import predict  # noqa: PLC0415 - start-up time
    from aegis.planner.silicon.score import Outcome  # noqa: PLC0415

    with Progress() as progress:
        progress.tell(f"{len(found.rows)} predictions")
        said = list(predict(found.rows))
    answered = [
        Outcome(row, each) for row, each in zip(found.rows, said, strict=True) if not isinstance(each, str)
    ]
    return answered, dict(Counter(each for each in said if isinstance(each, str)).most_common())


def _nothing(system: str | None, backend: str | None, model: str | None) -> AegisError:
    from aegis.planner.silicon.deployments import shipped  # noqa: PLC0415 - start-up time

    rows = shipped()
    asked = " with ".join(filter(None, (system, backend, model)))
    there = [row for row in rows if system in {None, row.system}]
    known = sorted({row.model for row in there} or {row.system for row in rows})
    return NotFoundError(
        f"no deployment of {asked or 'any system'} was measured",
        hint=f"there are some of {', '.join(known)}; rows of your own: aegis plan calibrate",
    )


def _report(scores: dict[tuple[str, ...], Score], total: Score) -> str:
    names = max(len(name) for name in scores)
    head = (*("SYSTEM", "ENGINE", "MODEL")[:names], *HEAD)
    rows: Iterable[tuple[str, ...]] = (
        *((*name, *_cells(each)) for name, each in scores.items()),
        *([("TOTAL", *[""] * (names - 1), *_cells(total))] if len(scores) > 1 else []),
    )
    return table(head, rows)


def _cells(found: Score) -> tuple[str, ...]:
    return (
        f"{found.rows:,}",
        f"{found.tpot.median:.1%}",
        f"{found.tpot.mean:.1%}",
        f"{found.ttft.median:.1%}",
        f"{found.throughput.median:.1%}",
        f"{found.throughput.bias:+.1%}",
        f"{found.throughput.held:.0%}",
        "" if found.order is None else f"{found.order:.3f}",
    )


def _left_out(found: Counted, silent: dict[str, int], *, both: bool) -> str:
    """Say which rows these are, and why others are not counted."""
    flawed = sum(found.left_out.values())
    half = "both halves" if both else "the test half, which the estimator has not seen"
    said = [
        f"{found.of:,} measured rows of {half}:",
        f"{len(found.rows) - sum(silent.values()):,} counted,",
        f"{found.copies:,} not, as copies of a measurement in the fit half,",
        f"{flawed:,} left out by rule,",
        f"{sum(silent.values()):,} without an answer",
    ]
    reasons = [f"\n  {count:,}: {reason}" for reason, count in (*found.left_out.items(), *silent.items())]
    return " ".join(said) + "".join(reasons)


def _conclusion(total: Score, *, both: bool) -> str:
    said = (
        f"TPOT is off by {total.tpot.median:.1%} in the median ({total.tpot.mean:.1%} in the mean), "
        f"TTFT by {total.ttft.median:.1%}, tokens/s of a GPU by {total.throughput.median:.1%}; "
        f"{total.throughput.held:.0%} lie within their 80% interval"
    )
    if both:
        return f"{said}; the fit half flatters: its rows are known to the estimator"
    return f"{said}; few rows: take it with care" if total.rows < FEW else said


def _document(
    scores: dict[tuple[str, ...], Score], total: Score, found: Counted, silent: dict[str, int], *, both: bool
) -> dict[str, Any]:
    import msgspec  # noqa: PLC0415 - only for JSON

    return {
        "half": "both" if both else "test",
        "rows": found.of,
        "copies": found.copies,
        "left_out": found.left_out,
        "unanswered": silent,
        "total": msgspec.to_builtins(total),
        "groups": [
            dict(zip(("system", "backend", "model"), name, strict=False)) | msgspec.to_builtins(each)
            for name, each in scores.items()
        ],
    }
