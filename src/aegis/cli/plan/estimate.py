"""`aegis plan estimate`: one configuration, operation by operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from aegis.cli.plan.load import (
    asked_load,
    chosen_calibration,
    chosen_estimator,
    database_mode_option,
    estimator_options,
    flag,
    load_options,
)
from aegis.cli.plan.options import PlanCommand
from aegis.cli.render import print_json, table
from aegis.errors import AegisError
from aegis.planner.problem import BACKENDS, Parallel, Tuning
from aegis.planner.single import Asked, estimate, experiment_of, priced
from aegis.planner.task import Formats, WorkerQuestion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.estimate.worker import Worker
    from aegis.planner.single import Estimate

SIZES = ("tp", "pp", "dp", "moe_tp", "moe_ep", "cp")
PERCENT = 100
_POSITIVE = click.IntRange(min=1, max=10**8)


@click.command(cls=PlanCommand)
@click.option("--system", required=True, metavar="NAME", help="The GPU, e.g. h200_sxm.")
@click.option("--backend", type=click.Choice(BACKENDS), help="Engine. Default: trtllm, or what has tables.")
@click.option("--backend-version", metavar="VERSION", help="Of the tables (default: newest).")
@load_options
@database_mode_option
@estimator_options
@click.option(
    "--batch",
    "batches",
    type=_POSITIVE,
    multiple=True,
    default=(1,),
    show_default=True,
    help="Requests in flight of an attention group. Repeatable: several give a line each.",
)
@click.option(
    "--context-tokens", type=_POSITIVE, metavar="TOKENS", help="Prompt tokens of a mixed step (default: isl)."
)
@click.option(
    "--simulate",
    type=click.FloatRange(0, 99),
    metavar="PERCENT",
    help="Also batch step by step, answers up to so much shorter or longer.",
)
@click.option("--tp", type=_POSITIVE, default=1, show_default=True, help="Tensor parallel.")
@click.option("--pp", type=_POSITIVE, default=1, show_default=True, help="Pipeline parallel.")
@click.option("--dp", type=_POSITIVE, default=1, show_default=True, help="Attention data parallel.")
@click.option(
    "--moe-tp", type=_POSITIVE, default=1, show_default=True, help="Tensor parallel of the experts."
)
@click.option("--moe-ep", type=_POSITIVE, help="Expert parallel (default: what tp, dp and moe-tp leave).")
@click.option("--cp", type=_POSITIVE, default=1, show_default=True, help="Context parallel.")
@click.option(
    "--gemm", metavar="FORMAT", help="Number format of dense weights, e.g. fp8_block (default: the model's)."
)
@click.option("--moe", metavar="FORMAT", help="Number format of experts.")
@click.option("--kv-cache", metavar="FORMAT", help="Number format of the KV cache.")
@click.option("--fmha", metavar="FORMAT", help="Number format of prefill attention.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(**options: Any) -> None:
    """Say what one configuration takes and delivers: steps by operation, times, throughput, memory.

    \b
    aegis plan estimate --model LLAMA3.1_8B --system h100_sxm --tp 2 --batch 32 --isl 2000 --osl 300
    """  # noqa: D301 - \\b keeps click from filling the line
    load = asked_load(options)
    formats = Formats(**{name: options[name] for name in ("gemm", "moe", "kv_cache", "fmha")})
    experiment = experiment_of(
        Asked(
            worker=WorkerQuestion(
                model=options["model"],
                system=options["system"],
                backends=(options["backend"],) if options["backend"] else (),
                version=options["backend_version"],
                formats=formats,
            ),
            split=Parallel(**{name: options[name] or 0 for name in SIZES}),
            load=load,
            tuning=Tuning(),
            estimator=chosen_estimator(options),
            calibration=chosen_calibration(options),
            database_mode=options["database_mode"],
            where=flag,
        )
    )
    worker = priced(experiment)
    found = [
        _simulated(replace(each, model=experiment.model_name), worker, options["simulate"])
        for batch in dict.fromkeys(options["batches"])
        for each in [estimate(worker, load, Tuning(), batch=batch, context_tokens=options["context_tokens"])]
    ]
    _print(found, as_json=options["as_json"])
    for note in dict.fromkeys((*experiment.notes, *found[0].notes)):
        click.echo(f"note: {note}", err=True)
    too_large = next((each.batch for each in found if not each.fits), None)
    if too_large is not None:
        short = worker.shortage(load, role="agg", batch=too_large)
        raise AegisError(f"this does not fit: {short}", hint="split it further, or take a smaller --batch")


def _simulated(found: Estimate, worker: Worker, percent: float | None) -> Estimate:
    """Return an estimate with what a simulation says, where one was asked for."""
    if percent is None:
        return found
    from aegis.planner.simulated import simulated  # noqa: PLC0415 - only where it is asked for

    seen = simulated(
        worker,
        found.load,
        batch=found.batch,
        context_tokens=found.context_tokens,
        uneven=percent / PERCENT,
    )
    return replace(found, simulated=seen)


def _print(found: Sequence[Estimate], *, as_json: bool) -> None:
    """Print one estimate whole, several as a line each."""
    if as_json:
        from aegis.planner.report.document import builtins  # noqa: PLC0415 - only for JSON

        document = builtins(found)
        print_json(document if len(document) > 1 else document[0])
        return
    from aegis.planner.report.steps import report, summary  # noqa: PLC0415 - JSON needs none of it

    click.echo(report(found[0]) if len(found) == 1 else table(*summary(found)))
