"""`aegis plan calibrate`: factors from measured sweeps, for plans that come after."""

from __future__ import annotations

from pathlib import Path

import click

from aegis.cli.plan.options import PlanCommand
from aegis.cli.render import printable
from aegis.errors import ConfigError
from aegis.planner.calibrate import (
    Calibration,
    Calibrations,
    SweepRow,
    calibrate,
    calibrate_pairs,
    read_calibrations,
    read_sweep,
    write_calibrations,
)

_FILE = click.Path(path_type=Path, dir_okay=False)
Key = tuple[str, str, str]  # system, engine, model
NOTHING = ("", "", "")


@click.command(cls=PlanCommand)
@click.argument("sweeps", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="SWEEP...")
@click.option(
    "--plan",
    type=_FILE,
    metavar="FILE",
    help="For a SWEEP that is a table: what a plan says of the same configuration, CSV or JSON with concurrency, ttft, tpot.",
)
@click.option(
    "-o",
    "--output",
    type=_FILE,
    default="calibration.json",
    show_default=True,
    help="Where the factors go; those for other systems, engines and models that it holds stay.",
)
def command(sweeps: tuple[Path, ...], plan: Path | None, output: Path) -> None:
    """Compare measured SWEEPs with plans, and write the factors between them.

    A SWEEP is the folder or the sweep.json of `aegis bench sweep --plan`, which knows what was predicted: factors are then
    those of its system, engine and model. Or a CSV or JSON table with the columns concurrency, ttft and tpot (ms), or the
    results of `vllm bench serve`, together with --plan: these factors hold for any. Later plans apply them with
    --calibration.

    \b
    aegis plan calibrate sweep
    """  # noqa: D301 - \\b keeps click from filling the line
    known = _from_table(sweeps, plan) if plan is not None else _from_sweeps(sweeps)
    before = {_key(each): each for each in (read_calibrations(output) if output.exists() else ())}
    for each in known:
        _tell(each, before.get(_key(each)))
    write_calibrations(output, tuple((before | {_key(each): each for each in known}).values()))
    click.echo(f"written to {printable(str(output))}")


def _from_table(sweeps: tuple[Path, ...], plan: Path) -> Calibrations:
    """Return the factors between a table and a plan's."""
    if len(sweeps) > 1:
        raise ConfigError("--plan is for one SWEEP", hint="sweeps of `aegis bench sweep --plan` need none")
    (measured,) = sweeps
    return (calibrate(read_sweep(measured), read_sweep(plan), origin=measured.name),)


def _from_sweeps(files: tuple[Path, ...]) -> Calibrations:
    """Return the factors of each system, engine and model."""
    from aegis.bench.sweep.document import FILE, read  # noqa: PLC0415 - tables need none of it

    pairs: dict[Key, list[tuple[SweepRow, SweepRow]]] = {}
    names: dict[Key, list[str]] = {}
    for given in files:
        file = given / FILE if given.is_dir() else given
        if file.suffix != ".json":
            raise ConfigError(f"{str(file)!r}: a table needs --plan", hint="or name the folder of a sweep")
        sweep = read(file)
        if sweep.plan is None:
            raise ConfigError(
                f"{str(file)!r} holds no predictions",
                hint=f"`aegis bench sweep --report --plan FILE --output {file.parent}` adds them, and measures nothing anew",
            )
        if sweep.plan.calibrated:
            raise ConfigError(
                f"{str(file)!r}: its predictions are calibrated already",
                hint=f"`aegis bench sweep --report --plan FILE --output {file.parent}` makes them anew without",
            )
        key = (sweep.plan.system, sweep.plan.backend, sweep.plan.model)
        pairs.setdefault(key, []).extend(
            _pair(point.figures, point.predicted)
            for point in sweep.points
            if point.predicted and not point.broken and not point.bottleneck
        )
        names.setdefault(key, []).append(str(given))
    return tuple(
        calibrate_pairs(
            found,
            system=system,
            backend=backend,
            model=model,
            origin=", ".join(names[system, backend, model]),
        )
        for (system, backend, model), found in pairs.items()
    )


def _pair(figures: dict[str, float], predicted: dict[str, float]) -> tuple[SweepRow, SweepRow]:
    level = predicted["concurrency"]
    measured, planned = (
        SweepRow(
            concurrency=level,
            ttft=values["mean_ttft_ms"],
            tpot=values["mean_tpot_ms"],
            prefill_share=predicted["prefill_share"],
        )
        for values in (figures, predicted)
    )
    return measured, planned


def _key(known: Calibration) -> Key:
    return known.system, known.backend, known.model


def _tell(found: Calibration, before: Calibration | None) -> None:
    """Say what the factors are, and what they were."""
    if _key(found) != NOTHING:
        click.echo(f"{found.model} on {found.system} with {found.backend}:")
    decode = " ".join(f"{factor:.3g} (at {level:g})" for level, factor in found.decode)
    click.echo(f"prefill takes {found.prefill:.3g} of the planned time, decode {decode}")
    click.echo(f"mean error {found.error_before:.1%} before, {found.error_after:.1%} after")
    if before is not None:
        was = " ".join(f"{factor:.3g} (at {level:g})" for level, factor in before.decode)
        click.echo(f"in place of prefill {before.prefill:.3g}, decode {was}")
