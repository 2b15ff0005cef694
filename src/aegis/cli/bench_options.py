"""The flags of `aegis bench`: what is asked, who asks, where the result goes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.flags import format_flags, with_flags

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aegis.bench.question import Question

    Function = Callable[..., Any]

ABOVE_0 = click.FloatRange(0, min_open=True)
SOME = click.IntRange(1)
LAUNCHERS = ("auto", "local", "srun", "mpiexec", "ssh")


def load_options(function: Function) -> Function:
    """Add the flags that say what every endpoint is asked."""
    return with_flags(
        function,
        (
            click.option(
                "--model", metavar="NAME", help="Only endpoints that serve it (default: each one's first)."
            ),
            click.option(
                "--num-prompts",
                type=SOME,
                default=100,
                show_default=True,
                metavar="N",
                help="For each endpoint.",
            ),
            click.option(
                "--concurrency",
                type=SOME,
                metavar="N",
                help="Requests under way at each endpoint (default: all at once).",
            ),
            click.option(
                "--rate",
                type=ABOVE_0,
                metavar="R",
                help="Requests a second to each endpoint, sent whatever became of earlier ones.",
            ),
            click.option(
                "--burstiness",
                type=ABOVE_0,
                default=1.0,
                show_default=True,
                metavar="B",
                help="Of --rate: 1 is Poisson, less comes in bursts, `inf` is evenly spaced.",
            ),
            click.option(
                "--dataset",
                type=click.Choice(["random", "sharegpt", "jsonl"]),
                default="random",
                show_default=True,
                help="The prompts: random words, or those of a file.",
            ),
            click.option("--dataset-path", metavar="FILE", help="File of sharegpt or jsonl prompts."),
            click.option(
                "--input-tokens",
                type=SOME,
                default=1024,
                show_default=True,
                metavar="N",
                help="Of a random prompt.",
            ),
            click.option(
                "--output-tokens",
                type=int,
                metavar="N",
                help="Of an answer (default: random 128, jsonl 256, sharegpt the file's own); -1: each row's own, of jsonl.",
            ),
            click.option("--chat", is_flag=True, help="Ask /v1/chat/completions."),
            click.option("--seed", type=int, default=0, show_default=True, help="Of prompts and arrivals."),
        ),
    )


def client_options(function: Function) -> Function:
    """Add the flags that say who asks, started how."""
    return with_flags(
        function,
        (
            click.option(
                "--generator",
                type=click.Choice(["auto", "vllm", "aegis"]),
                default="auto",
                show_default=True,
                help="`vllm bench serve`, or the built-in one, which needs no vLLM here.",
            ),
            click.option(
                "--launcher",
                type=click.Choice(LAUNCHERS),
                default="auto",
                show_default=True,
                help="What starts vllm: within a job the site's, beside the endpoints; else this machine.",
            ),
            click.option(
                "--conda-env",
                metavar="DIR",
                help="Environment with vllm: a directory, or a conda-pack tarball.",
            ),
            click.option("--image", metavar="SIF", help="Container image with vllm."),
            click.option(
                "--platform",
                envvar="AEGIS_PLATFORM",
                default="auto",
                show_default=True,
                metavar="NAME",
                help="Site profile: its modules, launcher and containers.",
            ),
            click.option(
                "--shared-dir",
                type=click.Path(path_type=Path, file_okay=False),
                metavar="DIR",
                help="Where all nodes see temporary files (default: the working directory).",
            ),
            click.option(
                "--at-once",
                type=SOME,
                metavar="N",
                help="Processes of vllm on this machine (default: its cores, 8 at least).",
            ),
            click.option(
                "--processes",
                type=SOME,
                metavar="N",
                help="Of the built-in generator (default: what the load needs).",
            ),
            click.option(
                "--timeout",
                type=ABOVE_0,
                default=3600.0,
                show_default=True,
                metavar="SECONDS",
                help="For one endpoint; of the built-in generator, for one request.",
            ),
        ),
    )


def output_options(function: Function) -> Function:
    """Add the flags that say where the result goes."""
    return with_flags(
        function,
        (
            click.option(
                "--output",
                metavar="FILE.csv",
                help="Write CSV: a row for each endpoint, then SUMMARY rows. `-`: to stdout.",
            ),
            *format_flags("What stdout gets: a table, or everything."),
        ),
    )


def question_of(how: Mapping[str, Any]) -> Question:
    """Return what `load_options` were given for.

    Raises:
        ConfigError: it has no meaning.
    """
    from aegis.bench.question import Question  # noqa: PLC0415 - numpy

    return Question(
        prompts=how["num_prompts"],
        dataset=how["dataset"],
        path=how["dataset_path"],
        input_tokens=how["input_tokens"],
        output_tokens=how["output_tokens"],
        concurrency=how["concurrency"] or 0,
        rate=how["rate"] or math.inf,
        burstiness=how["burstiness"],
        chat=how["chat"],
        seed=how["seed"],
    )
