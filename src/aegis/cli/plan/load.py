"""The flags that say what is served and how fast it has to be; the guide's names and defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from aegis.planner.estimator import ESTIMATORS
from aegis.planner.plan import targets_of
from aegis.planner.problem import Load
from aegis.planner.task import LOAD, TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.planner.estimator import Estimator
    from aegis.planner.problem import Targets

_FLAGS = {"version": "--backend-version", "decode.system": "--decode-system"}


def load_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags of the model, its load and its targets."""
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
    for option in reversed(options):
        function = option(function)
    return function


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
            help="With --estimator guide: the cubic interpolation of its time (default), or a linear one, within 0.2 %.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def chosen_estimator(options: dict[str, Any]) -> Estimator:
    """Return the estimator that the flags name."""
    estimator = ESTIMATORS[options["estimator"]]
    return replace(estimator, exact=estimator.exact and options["exact"])


def asked(options: dict[str, Any]) -> tuple[Load, Targets]:
    """Return the load and the targets that the flags name."""
    return (
        Load(
            isl=options["isl"],
            osl=options["osl"],
            prefix=options["prefix"],
            max_seq_len=options.get("max_seq_len"),
        ),
        targets_of(
            options["ttft"],
            options["tpot"],
            options["request_latency"],
            strict=options.get("strict_sla", False),
        ),
    )


def flag(key: str) -> str:
    """Return the flag of a key of a question."""
    return _FLAGS.get(key) or f"--{key.rpartition('.')[2].replace('_', '-')}"
