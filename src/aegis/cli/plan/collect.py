"""`aegis plan collect`: measure this machine, and write a table that plans can rest on."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aegis.cli.plan.options import PlanCommand, Progress
from aegis.errors import ConfigError
from aegis.planner.collect.device import find_device
from aegis.planner.collect.run import Asked, collect
from aegis.planner.models.resolve import find_model
from aegis.planner.problem import BACKENDS
from aegis.planner.systems import BUILT_IN, own_folder

if TYPE_CHECKING:
    from aegis.planner.problem import Backend

_NAME = re.compile(r"[a-z0-9_]+")


@click.command(cls=PlanCommand)
@click.option("--name", required=True, metavar="NAME", help="What plans shall call this system, e.g. my_a40.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="vllm",
    show_default=True,
    help="Engine that the table is for.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "xpu", "cpu"]),
    default="auto",
    show_default=True,
    help="cuda is ROCm's too.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|ID|PATH",
    help="Measure the shapes of this model (repeatable); without it those that are common.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Time (default 60; quick: 5).",
)
@click.option("--quick", is_flag=True, help="Few points of each operation.")
@click.option(
    "--ranks",
    type=click.IntRange(1),
    metavar="N",
    help="Devices of collectives (default: all that are here).",
)
@click.option(
    "--fresh", is_flag=True, help="Forget the points of an earlier run instead of going on from them."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where the table goes (default: where plans look, $AEGIS_TABLES or ~/.config/aegis/tables).",
)
def command(  # noqa: PLR0917 - click passes flags by name
    name: str,
    backend: Backend,
    device: str,
    models: tuple[str, ...],
    budget: float | None,
    quick: bool,
    ranks: int | None,
    fresh: bool,
    output: Path | None,
) -> None:
    """Measure matrix products, attention, memory and collectives with PyTorch on this machine.

    What is written is a table and a description of the system, so that `--system NAME` works in every plan. A run that
    is interrupted goes on where it ended. It needs a Python that has PyTorch: that of your engine.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name}: lower-case letters, digits and _ are allowed")
    if (BUILT_IN / f"{name}.yaml").exists() and output is None:
        raise ConfigError(
            f"--name {name}: a system of this name is built in, and yours would hide it",
            hint="another name, or --output to write it elsewhere",
        )
    asked = Asked(
        name=name,
        backend=backend,
        folder=own_folder() if output is None else output,
        minutes=budget or (5.0 if quick else 60.0),
        quick=quick,
        models=tuple(find_model(each) for each in models),
        ranks=ranks,
        fresh=fresh,
    )
    found = find_device(device)
    with Progress() as progress:
        done = collect(
            asked,
            found,
            lambda what, at, of: progress.tell(
                f"measuring {what}" + (f", {at} of {of} points" if of else "")
            ),
        )
    click.echo(f"{found.title}: {done.rows} rows in {done.table}")
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOPS {each}" for each, rate in done.system.flops.items())
    click.echo(f"measured peak: {rates}; memory {done.system.memory_bandwidth / 1e9:.3g} GB/s")
    for count, why in (
        (done.left, "left out for lack of time or memory"),
        (done.cannot, "not possible here"),
    ):
        if count:
            click.echo(f"{count} points {why}", err=True)
    if done.left:
        click.echo("the same command goes on where this one ended; --budget gives it more time", err=True)
    sys.stdout.flush()
