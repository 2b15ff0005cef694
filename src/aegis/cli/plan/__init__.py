"""`aegis plan`: answers about a deployment before it is paid for. One file per subcommand, loaded when it runs."""

from __future__ import annotations

import os
from typing import ClassVar

import click

from aegis.cli import LazyGroup


class PlanGroup(LazyGroup):
    """The subcommands of `aegis plan`."""

    table: ClassVar = {
        "accuracy": (
            "aegis.cli.plan.accuracy",
            "Compare predictions with deployments that were measured.",
        ),
        "calibrate": (
            "aegis.cli.plan.calibrate",
            "Learn from measured sweeps or deployments: factors and rows for later plans.",
        ),
        "collect": ("aegis.cli.plan.collect", "Measure this machine and write tables of it."),
        "default": ("aegis.cli.plan.default", "Compare aggregated with disaggregated serving of a model."),
        "diff": ("aegis.cli.plan.diff", "Compare the best configurations of two plans."),
        "estimate": ("aegis.cli.plan.estimate", "Say what one configuration takes, operation by operation."),
        "exp": ("aegis.cli.plan.exp", "Run the experiments of a file."),
        "size": ("aegis.cli.plan.size", "How many GPUs and nodes of each machine a load needs."),
        "tables": ("aegis.cli.plan.tables", "List, import or check measured tables."),
        "why": ("aegis.cli.plan.why", "Say what binds a plan, and why other splits lose."),
    }

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module, and numpy with one thread: its pool takes a fifth of a cold start, and nothing here multiplies matrices."""
        if cmd_name != "collect":  # which measures with all there are
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return super().get_command(ctx, cmd_name)


@click.group(cls=PlanGroup)
def command() -> None:
    """Answer which GPUs, split how, with which batch sizes, serve a load within its targets."""
