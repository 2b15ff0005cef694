"""The flags that say what is served and how fast it has to be; the guide's names and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from msgspec.structs import replace

from aegis.cli.flags import with_flags
from aegis.planner.estimator import ESTIMATORS
from aegis.planner.plan import targets_of
from aegis.planner.problem import DatabaseMode, Load
from aegis.planner.task import LOAD, TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.planner.calibrate import Calibrations
    from aegis.planner.estimator import Estimator
    from aegis.planner.problem import Targets

_FLAGS = {"version": "--backend-version", "decode.system": "--decode-system", "accepted": "--nextn-accepted"}


def load_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags of the model and its load."""
    options = (
        click.option(
            "--model",
            "--model-path",
            required=True,
            metavar="NAME|ID|PATH",
            help="A name of the guide (QWEN3_32B), a Hugging Face id, or the path of a config.json.",
        ),
        click.option(
            "--isl",
            type=int,
            default=LOAD.isl,
            show_default=True,
            metavar="TOKENS",
            help="Input of a request.",
        ),
        click.option(
            "--osl",
            type=int,
            default=LOAD.osl,
            show_default=True,
            metavar="TOKENS",
            help="Output of a request.",
        ),
        click.option(
            "--prefix",
            type=int,
            default=0,
            show_default=True,
            metavar="TOKENS",
            help="Input that is in the prefix cache.",
        ),
    )
    return with_flags(function, options)


def target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags of the targets."""
    options = (
        click.option(
            "--ttft",
            type=float,
            metavar="MS",
            help=f"Target: time to the first token (default {TARGETS.ttft:g}).",
        ),
        click.option(
            "--tpot",
            type=float,
            default=TARGETS.tpot,
            show_default=True,
            metavar="MS",
            help="Target: time per further token.",
        ),
        click.option(
            "--request-latency", type=float, metavar="MS", help="Target: the whole request; replaces --tpot."
        ),
    )
    return with_flags(function, options)


def estimator_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that choose the rules."""
    options = (
        click.option(
            "--estimator",
            type=click.Choice(list(ESTIMATORS)),
            default="aegis",
            show_default=True,
            help="aegis: newest tables and rules, known flaws corrected; aic-0.12: the flaws left in; guide: tables and rules of the guide's time.",
        ),
        click.option(
            "--exact/--no-exact",
            default=True,
            help="With --estimator guide: the cubic interpolation of its time (default), or a linear one, within 0.3 %.",
        ),
        click.option(
            "--calibration",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Factors from a measured sweep, as `aegis plan calibrate` writes them.",
        ),
    )
    return with_flags(function, options)


def chosen_calibration(options: dict[str, Any]) -> Calibrations:
    """Return the factors that the flags name.

    Raises:
        ConfigError: the file is no calibration.
    """
    if options["calibration"] is None:
        return ()
    from aegis.planner.calibrate import read_calibrations  # noqa: PLC0415 - start-up time

    return read_calibrations(options["calibration"])


def database_mode_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flag that says which figures answer."""
    return click.option(
        "--database-mode",
        type=click.Choice(get_args(DatabaseMode), case_sensitive=False),
        default="SILICON",
        show_default=True,
        help="Tables alone; the speed of light; tables as utilisation; tables, and that where they end.",
    )(function)


def chosen_estimator(options: dict[str, Any]) -> Estimator:
    """Return the estimator that the flags name."""
    estimator = ESTIMATORS[options["estimator"]]
    return replace(estimator, exact=estimator.exact and options["exact"])


def asked_load(options: dict[str, Any]) -> Load:
    """Return the load that the flags name."""
    return Load(
        isl=options["isl"],
        osl=options["osl"],
        prefix=options["prefix"],
        max_seq_len=options.get("max_seq_len"),
    )


def asked_targets(options: dict[str, Any]) -> Targets:
    """Return the targets that the flags name."""
    return targets_of(
        options["ttft"],
        options["tpot"],
        options["request_latency"],
        strict=options.get("strict_sla", False),
    )


def flag(key: str) -> str:
    """Return the flag of a key of a question."""
    return _FLAGS.get(key) or f"--{key.rpartition('.')[2].replace('_', '-')}"
