"""`aegis batch-launch`: several models of the catalog as one job, each on nodes of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.options import key_options
from aegis.cli.submitting import (
    print_submitted,
    resolve_wish,
    submission_options,
    submit_job,
    transport_to,
)
from aegis.fleet.batch import batch_name, resolve_batch
from aegis.fleet.facts import batch_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.schedulers.transport import Transport
    from aegis.spec.resolve import Resolved

# What holds for all models of a batch; everything else is said of each, in a file of models
COMMON = (
    *("account", "work_dir", "walltime", "queue", "qos", "platform", "scheduler", "engine", "env"),
    *(
        "venv",
        "image",
        "bind",
        "hf_home",
        "log_dir",
        "endpoints_file",
        "aegis_env",
        "startup_timeout",
        "wait",
    ),
)


@click.command()
@click.argument("model_names", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--batch-config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A file of models to use instead of the catalog.",
)
@key_options(*COMMON)
@submission_options
def command(
    model_names: tuple[str, ...],
    *,
    batch_config: Path | None,
    remote: str | None,
    as_json: bool,
    dry_run: bool,
    force: bool,
    wait_timeout: float | None,
    **options: Any,
) -> None:
    """Launch several models of the catalog as one job; it starts when there is room for all of them.

    Each model is a component of its own, JOB+0, JOB+1, ...: `aegis status` and `aegis shutdown` take them as they take
    jobs. Each keeps an endpoints file of its own, in its run directory; one that is named gets the model's name in its own.
    """
    with transport_to(remote) as transport:
        resolved = resolve_all(model_names, batch_config, options, transport)
        name = batch_name(resolved)
        done = submit_job(
            resolved,
            transport,
            dry_run=dry_run,
            force=force,
            wait_timeout=wait_timeout,
            name=name,
            tell=not as_json,
        )
        if done:
            facts = batch_json(name, resolved, done.components, done.handle)
            print_submitted(done, facts if as_json else None)


def resolve_all(
    names: Sequence[str], config: Path | None, options: Mapping[str, Any], transport: Transport
) -> list[Resolved]:
    """Resolve every model, or say what is wrong with each.

    Raises:
        NotFoundError: nothing else is wrong than that some are not in the catalog.
        ConfigError: with every problem of every model.
    """

    def resolve_one(name: str) -> Resolved:
        return resolve_wish(name, config, options, transport=transport)

    return resolve_batch(names, resolve_one)
