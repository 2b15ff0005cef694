"""`aegis plan default`: aggregated against disaggregated serving of one model on so many GPUs."""

from __future__ import annotations

import os
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
from aegis.cli.plan.options import (
    PlanCommand,
    Progress,
    check_output,
    give_out,
    output_options,
    output_values,
)
from aegis.cli.plan.ranking import give_ranking
from aegis.errors import ConfigError
from aegis.planner.defaults import fill
from aegis.planner.everywhere import EVERY, Wish, asked_of, rank
from aegis.planner.plan import run
from aegis.planner.problem import BACKENDS, Mtp, Tuning
from aegis.planner.task import TOP_N


@click.command(cls=PlanCommand)
@click.option("--total-gpus", type=int, required=True, metavar="N", help="GPUs there are.")
@click.option(
    "--system",
    required=True,
    metavar="NAME",
    help="What they are, e.g. h200_sxm; any: all there are, ranked.",
)
@click.option(
    "--decode-system", metavar="NAME", help="Another system for decode workers (default: --system)."
)
@click.option(
    "--backend",
    type=click.Choice([*BACKENDS, "any", "auto"]),
    help="Engine; any (or auto): the best of those with tables. Default: trtllm, or what has tables.",
)
@click.option(
    "--backend-version", "--perf-db-version", metavar="VERSION", help="Of the tables (default: newest)."
)
@load_options
@target_options
@click.option("--strict-sla", is_flag=True, help="Show no configuration that misses a target.")
@database_mode_option
@click.option("--nextn", type=click.IntRange(0), metavar="N", help="Tokens drafted in a step (MTP).")
@click.option(
    "--nextn-accepted", type=float, metavar="MEAN", help="Of these, accepted in a step (default 0.85)."
)
@click.option(
    "--free-gpu-memory-fraction",
    type=float,
    metavar="SHARE",
    help="Memory for the KV cache (default: the engine's).",
)
@click.option("--max-seq-len", type=int, metavar="TOKENS", help="Longest sequence the engine reserves for.")
@click.option(
    "--enable-chunked-prefill", is_flag=True, help="Weigh chunks of prompts that are no whole prompts."
)
@estimator_options
@output_options
def command(**options: Any) -> None:
    """Compare aggregated with disaggregated serving of a model, and rank the best configurations of both.

    \b
    aegis plan default --model QWEN3_32B --total-gpus 32 --system h200_sxm --ttft 1000 --tpot 10 --isl 3000 --osl 512
    """  # noqa: D301 - \\b keeps click from filling the line
    if options["debug"]:
        os.environ["AEGIS_TRACEBACK"] = "1"
    check_output(options)
    load, targets = asked_load(options), asked_targets(options)
    wish = Wish(
        model=options["model"],
        load=load,
        targets=targets,
        estimator=chosen_estimator(options),
        calibration=chosen_calibration(options),
        decode_system=options["decode_system"],
        backend=options["backend"],
        backend_version=options["backend_version"],
        tuning=Tuning(
            free_memory_fraction=options["free_gpu_memory_fraction"],
            chunked_prefill=options["enable_chunked_prefill"],
        ),
        mtp=_mtp(options["nextn"], options["nextn_accepted"]),
        top_n=TOP_N if options["top_n"] is None else options["top_n"],
        database_mode=options["database_mode"],
        where=flag,
    )
    with Progress() as progress:
        if options["system"] == EVERY:
            ranked = rank(wish, options["total_gpus"], tell=progress.tell)
        else:
            plan = run(
                fill(asked_of(options["system"], wish, options["total_gpus"])),
                compared=True,
                tell=progress.tell,
            )
    if options["system"] == EVERY:
        give_ranking(ranked, as_json=options["as_json"])
    else:
        give_out(plan, **output_values(options))


def _mtp(drafted: int | None, accepted: float | None) -> Mtp | None:
    """Return the multi-token prediction that is asked for, None if nothing is said.

    Raises:
        ConfigError: it is said what is accepted, and not what is drafted.
    """
    if not drafted and accepted is not None:
        raise ConfigError("--nextn-accepted: nothing is drafted", hint="say how many tokens: --nextn N")
    if drafted is None:
        return None
    return Mtp(drafted=drafted) if accepted is None else Mtp.accepting(drafted, accepted)
