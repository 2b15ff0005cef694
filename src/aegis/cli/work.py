"""The `map` of a deployment, looked at before the job waits in a queue: its flags, and that its inputs are there."""

from __future__ import annotations

import contextlib
import glob
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aegis.errors import AegisError, DeploymentError, Problem

if TYPE_CHECKING:
    from aegis.spec.resolve import Resolved


def check_work(resolved: Resolved, *, here: bool) -> None:
    """Refuse what `aegis map` would refuse.

    Args:
        resolved: a deployment.
        here: the job will see the files of this machine.

    Raises:
        DeploymentError: the arguments are wrong.
    """
    text = resolved.deployment.map
    if text is None:
        return
    from aegis.cli.map import command  # noqa: PLC0415 - only for deployments that have work
    from aegis.fleet.work import words_of  # noqa: PLC0415 - as above

    try:
        context = command.make_context("map", words_of(text))
        _check(context, Path(resolved.deployment.work_dir or ".").expanduser() if here else None)
    except click.ClickException as error:
        raise _refused(resolved, error.format_message()) from None
    except click.exceptions.Exit:
        raise _refused(resolved, "it is nothing but --help") from None
    except AegisError as error:
        raise _refused(resolved, error.message.removeprefix("map: "), error.hint) from None


def _check(context: click.Context, folder: Path | None) -> None:
    from aegis.cli.map import SERVER_FLAGS, split_handle  # noqa: PLC0415 - as above
    from aegis.mapper.files.script import Script  # noqa: PLC0415 - as above
    from aegis.mapper.inputs import find_inputs  # noqa: PLC0415 - as above

    given = context.params
    listed = [f"@{given['inputs_from']}"] if given["inputs_from"] else []
    handle, named = split_handle([*given["inputs"], *given["more"], *listed])
    flags = [name for name in SERVER_FLAGS if name != "api_key_file" and _is_flag(context, name)]
    if handle or flags:
        said = handle or f"--{flags[0].replace('_', '-')}"
        raise click.UsageError(f"{said}: the servers are those of the job")
    if not named:
        raise click.UsageError("name an input")
    if given["output"] is None:
        raise click.UsageError("say where the answers go: --output OUT")
    if given["script"]:
        Script.parse(given["script"])
    if folder is not None and folder.is_dir():
        with contextlib.chdir(folder):
            next(find_inputs(named, leave_out=given["output"]), None)
            if missing := [name for name in named if _is_missing(name)]:
                raise click.UsageError(f"no such file: {', '.join(map(repr, missing))}")


def _is_flag(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _is_missing(name: str) -> bool:
    return not (name.startswith("@") or glob.has_magic(name) or Path(name).exists())


def _refused(resolved: Resolved, said: str, hint: str | None = None) -> DeploymentError:
    origin = resolved.origins.get("map", "--map")
    return DeploymentError([Problem(origin, f"`map`: {said}", hint)])
