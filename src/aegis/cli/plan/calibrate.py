"""`aegis plan calibrate`: what a site measured, for plans that come after: factors from sweeps, rows of deployments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from aegis.cli.plan.options import PlanCommand, Progress
from aegis.cli.render import printable
from aegis.errors import ConfigError, NotFoundError
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

if TYPE_CHECKING:
    from aegis.planner.silicon.site import Learnt

_FILE = click.Path(path_type=Path, dir_okay=False)
Key = tuple[str, str, str]  # system, engine, model
NOTHING = ("", "", "")


@click.command(cls=PlanCommand)
@click.argument("measured", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="MEASURED...")
@click.option(
    "--plan",
    type=_FILE,
    metavar="FILE",
    help="For a table of load levels: what a plan says of the same configuration, CSV or JSON with concurrency, ttft, tpot.",
)
@click.option(
    "-o",
    "--output",
    type=_FILE,
    default="calibration.json",
    show_default=True,
    help="Where it goes; what the file holds for other systems, engines and models stays.",
)
def command(measured: tuple[Path, ...], plan: Path | None, output: Path) -> None:
    """Compare what was MEASURED with predictions, and write what later plans apply with --calibration.

    MEASURED is the folder or the sweep.json of `aegis bench sweep --plan`, which knows what was predicted: it yields factors
    for its system, engine and model. Or a CSV table of deployments with the columns of docs/accuracy.md, one row a deployment
    and load: later plans read these rows together with the measured deployments that come along. Or a CSV or JSON table
    with the columns concurrency, ttft and tpot (ms), or the results of `vllm bench serve`, together with --plan: these factors
    hold for any.

    \b
    aegis plan calibrate sweep
    aegis plan calibrate deployments.csv
    """  # noqa: D301 - \\b keeps click from filling the line
    tables = [file for file in measured if _has_deployments(file)]
    if tables and (plan is not None or len(tables) < len(measured)):
        other = "--plan" if plan is not None else str(next(file for file in measured if file not in tables))
        raise ConfigError(
            f"{str(tables[0])!r} is a table of deployments, which {other!r} does not go with",
            hint="one call for each kind: the file that is written keeps both",
        )
    before = {_key(each): each for each in (read_calibrations(output) if output.exists() else ())}
    gains: dict[Key, str] = {}
    if tables:
        known, gains = _from_deployments(tables)
    elif plan is not None:
        known = _from_table(measured, plan)
    else:
        known = _from_sweeps(measured)
    for each in known:
        _tell(each, before.get(_key(each)), gains.get(_key(each)))
    write_calibrations(output, tuple((before | {_key(each): each for each in known}).values()))
    click.echo(f"written to {printable(str(output))}")


def _has_deployments(file: Path) -> bool:
    """Tell whether a file is a table of deployments; what cannot be read is told by those that read it whole."""
    from aegis.planner.silicon.deployments import is_table  # noqa: PLC0415 - start-up time

    try:
        return file.is_file() and is_table(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return False


def _from_deployments(files: list[Path]) -> tuple[Calibrations, dict[Key, str]]:
    """Return the rows of each system, engine and model, and what they gain in words; say how many count.

    Raises:
        ConfigError: a file is wrong, or nothing in it counts.
    """
    from aegis.planner.silicon.deployments import read  # noqa: PLC0415 - sweeps need none of it
    from aegis.planner.silicon.fitted import fitted  # noqa: PLC0415
    from aegis.planner.silicon.site import learn  # noqa: PLC0415

    rows = [row for file in files for row in read(file)]
    with Progress() as progress:
        progress.tell(f"{len(rows)} deployments")
        site = learn(rows, fitted())
    reasons = "".join(f"\n  {count} not: {reason}" for reason, count in site.left_out.items())
    count = sum(len(each.tpot_rows) for each in site.learnt)
    if not count:
        raise ConfigError(f"none of {len(rows)} measured rows counts{reasons}")
    click.echo(f"{count} of {len(rows)} measured rows count{reasons}")
    origin = ", ".join(file.name for file in files)
    known = tuple(_calibration(each, origin) for each in site.learnt)
    return known, {_key(each): _gains(found) for each, found in zip(known, site.learnt, strict=True)}


def _calibration(found: Learnt, origin: str) -> Calibration:
    def mean(name: str) -> float:
        return round(float(sum(getattr(gain, name).mean() for gain in (found.ttft, found.tpot))) / 2, 4)

    system, backend, model = found.key
    return Calibration(
        system=system,
        backend=backend,
        model=model,
        error_before=mean("before"),
        error_after=mean("loads"),
        origin=origin,
        ttft=found.ttft_rows,
        tpot=found.tpot_rows,
    )


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
        if not file.exists():
            raise NotFoundError(f"{str(file)!r}: there is no such file")
        if file.suffix != ".json":
            raise ConfigError(
                f"{str(file)!r}: a table needs --plan",
                hint="or name the folder of a sweep, or a table of deployments",
            )
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


def _gains(found: Learnt) -> str:
    """Say the median errors: before, and after for rows that are left out in turn, alone or with all of their deployment."""
    rows, deployments = len(found.tpot_rows), found.deployments
    said = [f"{rows} row{'s' * (rows > 1)} of {deployments} deployment{'s' * (deployments > 1)}"]
    for name, gain in (("TPOT", found.tpot), ("TTFT", found.ttft)):
        before, loads, others = (f"{float(np.median(each)):.1%}" for each in gain)
        without = f", {others} with those of other deployments alone" if deployments > 1 else ""
        said.append(f"{name} is off by {before} in the median, {loads} with your other rows{without}")
    return "\n".join(said)


def _tell(found: Calibration, before: Calibration | None, gains: str | None) -> None:
    """Say what the factors or rows are, and what they were."""
    if _key(found) != NOTHING:
        click.echo(f"{found.model} on {found.system} with {found.backend}:")
    if gains is not None:
        click.echo(gains)
    else:
        click.echo(f"prefill takes {found.prefill:.3g} of the planned time, decode {_decode(found)}")
        click.echo(f"mean error {found.error_before:.1%} before, {found.error_after:.1%} after")
    if before is not None and before.tpot:
        click.echo(f"in place of {len(before.tpot)} rows of {before.origin}")
    elif before is not None:
        click.echo(f"in place of prefill {before.prefill:.3g}, decode {_decode(before)}")


def _decode(known: Calibration) -> str:
    return " ".join(f"{factor:.3g} (at {level:g})" for level, factor in known.decode)
