"""`aegis plan estimate`: one configuration, operation by operation."""

from __future__ import annotations

from typing import Any

import click

from aegis.cli.plan.load import asked, chosen_estimator, estimator_options, flag, load_options
from aegis.cli.plan.options import PlanCommand
from aegis.cli.render import print_json
from aegis.errors import AegisError
from aegis.planner.problem import BACKENDS, Parallel, Tuning
from aegis.planner.single import Asked, estimate, worker_of
from aegis.planner.task import Formats, WorkerQuestion

_POSITIVE = click.IntRange(min=1)


@click.command(cls=PlanCommand)
@click.option("--system", required=True, metavar="NAME", help="The GPU, e.g. h200_sxm.")
@click.option("--backend", type=click.Choice(BACKENDS), help="Engine. Default: trtllm, or what has tables.")
@click.option("--backend-version", metavar="VERSION", help="Of the tables (default: newest).")
@load_options
@estimator_options
@click.option(
    "--batch", type=_POSITIVE, default=1, show_default=True, help="Requests in flight of an attention group."
)
@click.option(
    "--context-tokens", type=_POSITIVE, metavar="TOKENS", help="Prompt tokens of a mixed step (default: isl)."
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
    r"""Say what one configuration takes and delivers: steps by operation, times, throughput, memory.

    \b
    aegis plan estimate --model LLAMA3.1_8B --system h100_sxm --tp 2 --batch 32 --isl 2000 --osl 300
    """
    load, _ = asked(options)
    names = ("tp", "pp", "dp", "moe_tp", "cp")
    sizes = {name: options[name] for name in names}
    sizes["moe_ep"] = options["moe_ep"] or _experts_left(sizes)
    formats = Formats(**{name: options[name] for name in ("gemm", "moe", "kv_cache", "fmha")})
    worker = worker_of(
        Asked(
            worker=WorkerQuestion(
                model=options["model"],
                system=options["system"],
                backends=(options["backend"],) if options["backend"] else (),
                version=options["backend_version"],
                formats=formats,
            ),
            split=Parallel(**sizes),
            load=load,
            tuning=Tuning(),
            estimator=chosen_estimator(options),
            where=flag,
        )
    )
    found = estimate(worker, load, Tuning(), batch=options["batch"], context_tokens=options["context_tokens"])
    if options["as_json"]:
        import msgspec  # noqa: PLC0415 - only for JSON

        print_json(msgspec.to_builtins(found))
    else:
        from aegis.planner.report.steps import report  # noqa: PLC0415 - JSON needs none of it

        click.echo(report(found))
        for note in found.notes:
            click.echo(f"note: {note}", err=True)
    if not found.fits:
        short = worker.shortage(load, role="agg", batch=options["batch"])
        raise AegisError(f"this does not fit: {short}", hint="split it further, or take a smaller --batch")


def _experts_left(sizes: dict[str, int]) -> int:
    """Return the expert parallel size that makes tp * dp * cp = moe_tp * moe_ep."""
    return max(sizes["tp"] * sizes["dp"] * sizes["cp"] // sizes["moe_tp"], 1)
