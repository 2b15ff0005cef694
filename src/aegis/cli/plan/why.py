"""`aegis plan why`: what binds the best configurations."""

from __future__ import annotations

from typing import Any

import click

from aegis.cli.plan.load import (
    asked_load,
    asked_targets,
    chosen_calibration,
    chosen_estimator,
    database_mode_option,
    estimator_options,
    flag,
    load_options,
    target_options,
)
from aegis.cli.plan.options import PlanCommand, Progress, unmet
from aegis.cli.render import print_json
from aegis.planner.defaults import fill
from aegis.planner.plan import questions, run
from aegis.planner.problem import BACKENDS, Tuning
from aegis.planner.task import TOP_N
from aegis.planner.why import why


@click.command(cls=PlanCommand)
@click.option("--total-gpus", type=int, required=True, metavar="N", help="GPUs there are.")
@click.option("--system", required=True, metavar="NAME", help="What they are, e.g. h200_sxm.")
@click.option(
    "--decode-system", metavar="NAME", help="Another system for decode workers (default: --system)."
)
@click.option(
    "--backend", type=click.Choice([*BACKENDS, "any"]), help="Engine. Default: trtllm, or what has tables."
)
@click.option("--backend-version", metavar="VERSION", help="Of the tables (default: newest).")
@load_options
@target_options
@database_mode_option
@estimator_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, one element for each mode.")
def command(**options: Any) -> None:
    """Say what binds the best configurations: memory, compute, links or a target; and why other splits lose.

    \b
    aegis plan why --model LLAMA3.1_70B --total-gpus 16 --system h100_sxm --tpot 20
    """  # noqa: D301 - \\b keeps click from filling the line
    load, targets = asked_load(options), asked_targets(options)
    wanted = questions(
        options["model"],
        options["total_gpus"],
        options["system"],
        decode_system=options["decode_system"],
        backend=options["backend"],
        backend_version=options["backend_version"],
        load=load,
        targets=targets,
        tuning=Tuning(),
        mtp=None,
        top_n=TOP_N,
        estimator=chosen_estimator(options),
        database_mode=options["database_mode"],
        calibration=chosen_calibration(options),
        where=flag,
    )
    with Progress() as progress:
        plan = run(fill(wanted), compared=True, tell=progress.tell)
        reasons = why(plan)
    if options["as_json"]:
        from aegis.planner.report.document import builtins  # noqa: PLC0415 - only for JSON

        print_json(builtins(reasons))
    elif reasons:
        from aegis.planner.report.binding import report  # noqa: PLC0415 - JSON needs none of it

        click.echo(report(reasons))
    for note in dict.fromkeys(note for answer in plan.answers for note in answer.notes):
        click.echo(f"note: {note}", err=True)
    if not plan.meets_targets:
        raise unmet(plan)
