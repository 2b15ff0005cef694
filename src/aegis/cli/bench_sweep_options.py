"""The flags of `aegis bench sweep`: what is sent, and what becomes of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.flags import format_flags, with_flags
from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aegis.api.targets import Target
    from aegis.bench.sweep.document import Question, Sweep
    from aegis.bench.sweep.search import Rules

AUTO = "auto"
MOST_USERS = 1024
RATE_DOUBLINGS = 14
EVEN = 1e6  # a burstiness that JSON can write, and whose gaps differ by a thousandth


class Levels(click.ParamType[Any]):
    """Loads, separated by commas; `auto`."""

    name = "levels"

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...] | str:
        """Return them in their order, each once."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return] # converted already
        if value == AUTO:
            return value
        try:
            found = tuple(float(word) for word in value.split(","))
        except ValueError:
            found = ()
        if not found or not all(
            0 < each < math.inf and (each == int(each) or not self.whole) for each in found
        ):
            what = "whole numbers of 1 or more" if self.whole else "numbers above 0"
            self.fail(f"{value!r}: {what}, separated by commas, or {AUTO}", param, ctx)
        return tuple(dict.fromkeys(found))


def load_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say what is sent."""
    positive = click.IntRange(min=1)
    options = (
        click.option("--model", metavar="NAME", help="Default: the one that the servers have."),
        click.option(
            "--concurrency",
            type=Levels(whole=True),
            metavar="1,2,4,...|auto",
            help="Requests that each server holds at once. Default: auto, doubled until throughput grows no more, then refined.",
        ),
        click.option(
            "--rate",
            type=Levels(whole=False),
            metavar="0.5,1,...|auto",
            help="Requests/s that each server gets, whether it keeps up or not.",
        ),
        click.option(
            "--up-to", type=click.FloatRange(min=1), metavar="LEVEL", help=f"Where auto ends [default: concurrency {MOST_USERS}]."
        ),
        click.option(
            "--burstiness",
            type=click.FloatRange(min=0, min_open=True),
            default=1.0,
            show_default=True,
            help="With --rate: 1 is a Poisson process, inf evenly spaced.",
        ),
        click.option(
            "--dataset",
            type=click.Choice(["random", "sharegpt", "jsonl"]),
            default="random",
            show_default=True,
            help="The prompts: random words, or those of a file.",
        ),
        click.option("--dataset-path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="File of sharegpt or jsonl prompts."),
        click.option("--input-tokens", type=positive, default=1024, show_default=True, help="Of random prompts."),
        click.option(
            "--output-tokens",
            type=int,
            metavar="N",
            help="Of an answer (default: 128 of random prompts; those of a file, of jsonl 256, or -1 for each row's own).",
        ),
        click.option("--chat", is_flag=True, help="Send chats rather than completions."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of prompts and arrivals."),
        click.option(
            "--requests-per-point", type=positive, metavar="N", help="To each server; those of the warm-up come on top."
        ),
        click.option(
            "--seconds-per-point",
            type=click.FloatRange(min=0, min_open=True),
            metavar="S",
            help="Instead; without either a point takes 10 answers of each user, up to three times if its noise is above 3 %.",
        ),
        click.option(
            "--timeout", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True, help="Seconds of one request."
        ),
        click.option("--processes", type=positive, metavar="N", help="Of the load generator (default: as many as it needs)."),
    )  # fmt: skip
    return with_flags(function, options)


def result_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say what becomes of it."""
    ms = click.FloatRange(min=0, min_open=True)
    options = (
        click.option("--ttft", type=ms, metavar="MS", help="Target: time to the first token."),
        click.option("--tpot", type=ms, metavar="MS", help="Target: time per further token."),
        click.option(
            "--sla",
            type=click.Choice(["mean", "median", "p90", "p99"]),
            default="mean",
            show_default=True,
            help="What has to keep to the targets; a plan's are means.",
        ),
        click.option("--gpus", type=click.IntRange(min=1), metavar="N", help="GPUs of one server (default: the plan's)."),
        click.option(
            "--plan",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="What a plan says of these servers: the output of `aegis plan default --json`, or a folder of --save-dir.",
        ),
        click.option(
            "--calibration",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="With --plan: factors of `aegis plan calibrate`.",
        ),
        click.option(
            "--output",
            type=click.Path(path_type=Path, file_okay=False),
            default="sweep",
            show_default=True,
            metavar="DIR",
            help="Where sweep.json, .csv and .html go; points that are there already are not measured again.",
        ),
        click.option("--report", is_flag=True, help="Measure nothing: write the files in DIR anew, with these targets and this plan."),
        *format_flags("Of stdout."),
    )  # fmt: skip
    return with_flags(function, options)


def check(options: Mapping[str, Any]) -> None:
    """Refuse flags that have no meaning together."""
    if options["concurrency"] and options["rate"]:
        raise ConfigError("--concurrency and --rate exclude each other", hint="give one of them")
    if options["requests_per_point"] and options["seconds_per_point"]:
        raise ConfigError("--requests-per-point and --seconds-per-point exclude each other")
    if (options["dataset"] == "random") != (options["dataset_path"] is None):
        needed = "needs a file" if options["dataset_path"] is None else "reads no file"
        raise ConfigError(f"--dataset {options['dataset']} {needed}: --dataset-path")
    tokens = options["output_tokens"]
    if tokens is not None and tokens < 1 and (tokens, options["dataset"]) != (-1, "jsonl"):
        raise ConfigError("--output-tokens is 1 at least", hint="-1, with --dataset jsonl: each row's own")
    if options["calibration"] and not options["plan"]:
        raise ConfigError("--calibration is for predictions", hint="name a plan with --plan")


def question_of(options: Mapping[str, Any], model: str, targets: Sequence[Target]) -> Question:
    from aegis.bench.sweep.document import Question  # noqa: PLC0415 - start-up time

    path, random = options["dataset_path"], options["dataset"] == "random"
    return Question(
        model=model,
        servers=tuple(target.address for target in targets),
        kind="rate" if options["rate"] else "concurrency",
        dataset=options["dataset"],
        path=str(path.absolute()) if path else "",
        input_tokens=options["input_tokens"] if random else 0,
        output_tokens=options["output_tokens"] or (128 if random else 0),
        burstiness=min(options["burstiness"], EVEN) if options["rate"] else 1.0,
        chat=options["chat"],
        requests=options["requests_per_point"],
        seconds=options["seconds_per_point"],
        seed=options["seed"],
    )


def levels_of(sweep: Sweep, options: Mapping[str, Any], latency: float) -> Sequence[float] | Rules:
    """Return the levels that are asked for, or how they are found.

    Args:
        sweep: with the points that there are: their doubling goes on.
        options: the flags.
        latency: s of a request on an idle server.
    """
    from aegis.bench.sweep.search import Rules  # noqa: PLC0415 - start-up time

    asked = options["concurrency"] or options["rate"] or AUTO
    if asked != AUTO:
        return tuple(sorted(asked))
    if sweep.question.kind == "concurrency":
        return Rules(most=options["up_to"] or MOST_USERS)
    alone = 2.0 ** math.floor(math.log2(0.5 / max(latency, 1e-3)))  # a request hardly ever meets another
    start = min((point.level for point in sweep.points), default=alone)
    return Rules(start=start, most=options["up_to"] or start * 2**RATE_DOUBLINGS, whole=False)
