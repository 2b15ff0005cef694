"""The command line: one file per command, loaded only when that command runs."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, ClassVar, NoReturn

import click

from aegis import __version__
from aegis.errors import AegisError, InterruptedByUser

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS = {
    "batch-launch": ("aegis.cli.batch_launch", "Launch several models of the catalog as one job."),
    "bench": ("aegis.cli.bench", "Measure how fast servers answer."),
    "cleanup": ("aegis.cli.cleanup", "Delete the logs of jobs that have ended."),
    "config": ("aegis.cli.config", "Show a resolved deployment, or the schema of its file."),
    "gateway": ("aegis.cli.gateway", "Serve one URL in front of all servers."),
    "launch": ("aegis.cli.launch", "Start the servers here: in this allocation, or on this machine."),
    "list": ("aegis.cli.list", "List the models of the catalog, or show one."),
    "logs": ("aegis.cli.logs", "Print or follow the logs of a job."),
    "map": ("aegis.cli.map", "Push prompts or files through servers, each exactly once."),
    "metrics": ("aegis.cli.metrics", "Show what the servers of a job do at present."),
    "plan": ("aegis.cli.plan", "Answer which GPUs, split how, serve a load within its targets."),
    "platform": ("aegis.cli.platform", "List or show site profiles."),
    "registry": ("aegis.cli.registry", "Ask a registry for its services, or run one."),
    "scale": ("aegis.cli.scale", "Change how many servers of a model a job runs."),
    "shutdown": ("aegis.cli.shutdown", "Stop the servers of a job."),
    "sim": ("aegis.cli.sim", "Run one simulated server (for rehearsals and tests)."),
    "stage": ("aegis.cli.stage", "Bring weights, environment and image onto the nodes."),
    "status": ("aegis.cli.status", "Show jobs and their servers."),
    "submit": ("aegis.cli.submit", "Submit a deployment as a job."),
    "top": ("aegis.cli.top", "Watch jobs, servers and their figures in the terminal."),
    "tunnel": ("aegis.cli.tunnel", "Reach a server of a job from your own machine."),
    "wait": ("aegis.cli.wait", "Wait until a job serves, or has ended."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is used."""

    table: ClassVar[Mapping[str, tuple[str, str]]] = COMMANDS  # name -> (module, help)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        del ctx
        return sorted(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module, whose attribute `command` it is."""
        del ctx
        if cmd_name not in self.table:
            return None
        command: click.Command = importlib.import_module(self.table[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may have been meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from aegis.spec.suggest import did_you_mean  # noqa: PLC0415 - only for a mistyped name

            hint = did_you_mean(args[0], self.table)
            ctx.fail(f"{error.message.rstrip('.')}{f' ({hint})' if hint else ''}.")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name][1]) for name in sorted(self.table)])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="aegis")
def cli() -> None:
    """Plan, launch, discover, measure and feed fleets of LLM inference servers."""


def fail(error: AegisError) -> NoReturn:
    """Print an error for a person and end with its exit code."""
    lines = [_printable(line) for line in error.message.splitlines()] or [type(error).__name__]
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    prefix = "error:" if plain else click.style("error:", fg="red", bold=True)
    click.echo(f"{prefix} {lines[0]}", err=True)
    for line in lines[1:]:
        click.echo(f"       {line}", err=True)
    if error.hint:
        hint = "\n".join(_printable(line) for line in error.hint.splitlines())
        click.echo(f" hint: {hint}", err=True)
    sys.exit(error.exit_code)


def _printable(line: str) -> str:
    """Return a line whose control characters, of a name that somebody gave, do nothing to a terminal."""
    from aegis.cli.render import printable  # noqa: PLC0415 - only for errors

    return printable(line)


def main() -> NoReturn:
    """Run the command line; no traceback of an expected error reaches a user."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except AegisError as error:
        fail(error)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        fail(InterruptedByUser("interrupted"))
    except BrokenPipeError:  # `aegis status | head`: the reader has left
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # of the machine: a full disk behind stdout, a folder that may not be read
        if os.environ.get("AEGIS_TRACEBACK"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        fail(AegisError(f"{where}{error.strerror or error}"))
    except Exception as error:
        if os.environ.get("AEGIS_TRACEBACK"):
            raise
        said = f"internal error: {type(error).__name__}: {error}"
        fail(AegisError(said, hint="a defect of aegis; with AEGIS_TRACEBACK=1 the same command shows where"))


def entry() -> NoReturn:
    """Run as the console script: `main`, then leave at once.

    Taking the interpreter down object by object costs a light command a tenth of its time, and gives nobody anything.
    """
    code: object = 1
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    for stream in filter(None, (sys.stdout, sys.stderr)):  # none where it was closed by whoever started us
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
    os._exit(code if isinstance(code, int) else int(bool(code)))
