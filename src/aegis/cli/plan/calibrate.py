"""`aegis plan calibrate`: factors from a measured sweep, for plans that come after."""

from __future__ import annotations

from pathlib import Path

import click

from aegis.cli.plan.options import PlanCommand
from aegis.planner.calibrate import calibrate, read_sweep, write_calibration

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=PlanCommand)
@click.argument("measured", type=_FILE)
@click.option(
    "--plan",
    type=_FILE,
    required=True,
    metavar="FILE",
    help="What a plan says of the same configuration: CSV or JSON with concurrency, ttft, tpot.",
)
@click.option(
    "-o", "--output", type=_FILE, default="calibration.json", show_default=True, help="Where the factors go."
)
def command(measured: Path, plan: Path, output: Path) -> None:
    """Compare a MEASURED sweep of a server with a plan of it, and write the factors between them.

    MEASURED is CSV or JSON with the columns concurrency, ttft and tpot (ms), or the results of `vllm bench serve`. Later
    plans apply the factors with --calibration.
    """
    found = calibrate(read_sweep(measured), read_sweep(plan), origin=measured.name)
    write_calibration(output, found)
    decode = " ".join(f"{factor:.3g} (at {level:g})" for level, factor in found.decode)
    click.echo(f"prefill takes {found.prefill:.3g} of the planned time, decode {decode}")
    click.echo(
        f"mean error {found.error_before:.1%} before, {found.error_after:.1%} after; written to {output}"
    )
