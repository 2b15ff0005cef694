"""`aegis plan exp`: the experiments of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from aegis.cli.plan.load import chosen_calibration, chosen_estimator, estimator_options
from aegis.cli.plan.options import (
    PlanCommand,
    Progress,
    check_output,
    give_out,
    output_options,
    output_values,
)
from aegis.planner.defaults import fill
from aegis.planner.experiments import read_questions
from aegis.planner.plan import run
from aegis.planner.task import TOP_N


@click.command(cls=PlanCommand)
@click.option(
    "--yaml-path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="The experiments (YAML); - is standard input.",
)
@estimator_options
@output_options
def command(yaml_path: Path, **options: Any) -> None:
    """Run the experiments of a file, in its order, and rank the best configurations of each."""
    if options["debug"]:
        os.environ["AEGIS_TRACEBACK"] = "1"
    check_output(options)
    top_n = TOP_N if options["top_n"] is None else options["top_n"]
    asked = read_questions(yaml_path, estimator=chosen_estimator(options), top_n=top_n)
    calibration = chosen_calibration(options)
    if calibration:
        asked = tuple(replace(each, calibration=calibration) for each in asked)
    with Progress() as progress:
        plan = run(fill(asked), tell=progress.tell)
    give_out(plan, **output_values(options))
