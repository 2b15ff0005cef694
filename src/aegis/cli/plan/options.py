"""What the planning commands share: flags in both spellings, progress, and how a plan is given out."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from aegis.cli.flags import with_flags
from aegis.cli.render import print_json
from aegis.errors import AegisError, ConfigError
from aegis.planner.task import TOP_N

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from aegis.planner.plan import Plan

SAVED = 3  # configurations that --save-dir writes, as in the guide
QUIET_SECONDS = 1.0  # what takes no longer needs no progress


class PlanCommand(click.Command):
    """A command that takes `--total_gpus` for `--total-gpus`: the guide's flags have underscores."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give known flags the spelling with dashes."""
        known = {name for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)}
        return super().parse_args(ctx, [_dashed(arg, known) for arg in args])


def _dashed(arg: str, known: set[str]) -> str:
    name, equals, value = arg.partition("=")
    dashed = name.replace("_", "-")
    return f"{dashed}{equals}{value}" if name.startswith("--") and dashed in known else arg


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say how many configurations are wanted, in which form and where."""
    options = (
        click.option(
            "--top-n",
            type=int,
            metavar="N",
            help=f"Configurations of each experiment: shown (default {TOP_N}) and saved (default {SAVED}).",
        ),
        click.option(
            "--json", "as_json", is_flag=True, help="Print JSON: by experiment, the ranked rows of its table."
        ),
        click.option(
            "--save-dir",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="Also write tables, plots and the files of a deployment into a new folder of DIR.",
        ),
        click.option(
            "--generated-config-version",
            metavar="VERSION",
            help="With --save-dir: the version of the backend that files are written for.",
        ),
        click.option(
            "--platform", metavar="NAME", help="With --save-dir: the platform that aegis.yaml is written for."
        ),
        click.option("--debug", is_flag=True, help="Show where an internal error comes from."),
    )
    return with_flags(function, options)


def check_output(options: dict[str, Any]) -> None:
    """Check what only files need, before anything is searched.

    Raises:
        ConfigError: there is no folder for files that are described.
        DeploymentError: unknown platform.
    """
    for name in ("platform", "generated_config_version"):
        if options[name] is not None and options["save_dir"] is None:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is for the files of a deployment", hint="say where: --save-dir DIR")
    if options["platform"] is not None:
        from aegis.spec.platforms import Site, load_platform  # noqa: PLC0415 - start-up time

        load_platform(options["platform"], Site.here(os.environ))


def output_values(options: dict[str, Any]) -> dict[str, Any]:
    """Return what `give_out` is told, of all flags."""
    names = ("as_json", "save_dir", "top_n", "generated_config_version", "platform")
    return {name: options[name] for name in names}


class Progress:
    """Says on stderr what is done, once it has taken over a second; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._doing = ""
        self._timer = threading.Timer(QUIET_SECONDS, self._say)
        self._timer.daemon = True
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Self:
        if self._shown:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def tell(self, doing: str) -> None:
        """Note what is done next."""
        self._doing = doing
        if self._shown and time.monotonic() - self._started > QUIET_SECONDS:
            self._say()

    def _say(self) -> None:
        click.echo(f"{time.monotonic() - self._started:4.0f} s  {self._doing}", err=True)


def give_out(
    plan: Plan,
    *,
    as_json: bool,
    save_dir: Path | None,
    top_n: int | None,
    generated_config_version: str | None,
    platform: str | None,
) -> None:
    """Print a plan, and save it where that is asked for.

    Raises:
        AegisError: nothing was found, or nothing that meets the targets.
    """
    if as_json:
        print_json(plan.to_dict())
    else:
        from aegis.planner.report.text import report  # noqa: PLC0415 - JSON needs none of it

        terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal else None
        click.echo(report(plan, width=width, color=terminal and not os.environ.get("NO_COLOR")))
    if save_dir is not None and plan.best is not None:
        from aegis.planner.emit import save  # noqa: PLC0415 - start-up time

        folder = save(
            plan,
            save_dir,
            top_n=top_n or SAVED,
            generated_config_version=generated_config_version,
            platform=platform,
        )
        click.echo(f"saved: {folder}", err=True)
    if not plan.meets_targets:
        raise unmet(plan)


def unmet(plan: Plan) -> AegisError:
    """Return the error of a plan without a configuration that meets its targets."""
    said = [f"{each.name}: {each.why_none}" for each in plan.answers if each.why_none]
    if plan.best is None:
        return AegisError("\n".join(["no configuration found", *said]))
    hint = "what is shown comes nearest: allow for it with --ttft and --tpot, or take more or faster GPUs"
    return AegisError("\n".join(["no configuration meets the targets", *said]), hint=hint)
