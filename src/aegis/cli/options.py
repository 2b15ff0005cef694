"""The flags that every command on a deployment shares: one for each key of the deployment file."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from aegis.errors import ConfigError
from aegis.preflight import check_entry
from aegis.spec.catalog.arguments import split_binds
from aegis.spec.catalog.variables import read_variables
from aegis.spec.resolve import GLOBAL_TYPES, MODEL_TYPES, Resolved, is_scalar, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aegis.spec.platforms import Site

SPREAD = tuple(
    name for name, type_ in MODEL_TYPES.items() if name.startswith("extra_") and not is_scalar(type_)
)
ONE_ARGUMENT = re.compile(
    r"-[^\s=]*=(?:[\[{].*|(?:(?!\s-).)*)", re.DOTALL
)  # JSON, or words without a second flag
METAVARS = {  # by name, or by the last word of it; else that word
    **dict.fromkeys(("size", "instances", "nodes", "restarts", "gpus_per_node", "cpus_per_node"), "N"),
    **dict.fromkeys(("hf_home", "venv", "aegis_env", "source"), "DIR"),
    **dict.fromkeys(("conda_env", "image", "prebuilt", "gateway_keys"), "FILE"),
    **dict.fromkeys(("port", "start"), "PORT"),
    **dict.fromkeys(("nodelist", "exclude"), "NODES"),
    "gateways": "N|per-node",
    "map": "ARGS",
    "mem_per_node": "SIZE",
    "timeout": "SECONDS",
    "walltime": "HH:MM:SS",
}
SHORT = {  # what else a flag is called, by vec-inf above all
    "account": ("-A",),
    "cpus_per_node": ("--cpus-per-task",),
    "nodes": ("--num-nodes",),
    "queue": ("--partition",),
    "walltime": ("--time",),
    "work_dir": ("-D",),
}


class DeploymentCommand(click.Command):
    """A command whose `--extra-vllm-args` takes everything up to the next flag of its own.

    `--extra-vllm-args --max-model-len 32768 --queue debug` gives the engine two arguments: no option of the
    engine has to be quoted, and none can be mistaken for one of ours unless it has the same name.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite each spread flag into one occurrence per argument."""
        own = {name for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)}
        return super().parse_args(ctx, spread(args, own))


def spread(args: list[str], own: set[str]) -> list[str]:
    """Return the command line with `--extra-X-args a b` written as `--extra-X-args=a --extra-X-args=b`."""
    flags = {f"--{name.replace('_', '-')}" for name in SPREAD}
    own = own | flags
    result: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        name, equals, value = arg.partition("=")
        if arg == "--":
            return [*result, arg, *rest]
        if name not in flags:
            result.append(arg)
            continue
        taken = [value] if equals else []
        while rest and rest[0] != "--" and rest[0].partition("=")[0] not in own:
            taken.append(rest.pop(0))
        result += [f"{name}={item}" for item in (_words(taken[0], name) if len(taken) == 1 else taken)]
    return result


def _words(text: str, flag: str) -> list[str]:
    """Split `"--a 1 --b 2"` given as one argument; `{"a": 1}` and `--a={"b": 1}` stay whole.

    Raises:
        click.UsageError: a quote in it is not closed.
    """
    if not text.startswith("-") or " " not in text or ONE_ARGUMENT.fullmatch(text):
        return [text]
    try:
        return shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"{flag}: {error} in `{text}`") from None


def deployment_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--config` and a flag for each key of the deployment file."""
    function = click.option("--gateway", "gateways", flag_value="1", help="The same as --gateways 1.")(
        function
    )
    function = key_options(*MODEL_TYPES, *GLOBAL_TYPES)(function)
    function = click.option(
        "--hf-token", metavar="TOKEN", help="Hugging Face token; HF_TOKEN in the environment is safer."
    )(function)
    function = click.option(
        "--no-environment", is_flag=True, hidden=True, help="Read no AEGIS_* variables (used inside jobs)."
    )(function)
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Deployment file (YAML). Flags win over it, for every key.",
    )(function)


def key_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what adds a flag for each of these keys of the deployment file."""
    types = {**MODEL_TYPES, **GLOBAL_TYPES}

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            function = _option(name, types[name])(function)
        return function

    return add


def _option(name: str, type_: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    info = msgspec.inspect.type_info(type_)
    text = ((getattr(info, "extra_json_schema", None) or {}).get("description") or "").rstrip(".")
    text = f"{text[:1].upper()}{text[1:]}."
    flag = f"--{name.replace('_', '-')}"
    inner = info.type if isinstance(info, msgspec.inspect.Metadata) else info
    if isinstance(inner, msgspec.inspect.BoolType):
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=text)
    if isinstance(inner, msgspec.inspect.DictType):
        more = "Repeatable; also NAME=VALUE,NAME=VALUE, and files with one of them a line."
        return click.option(
            flag, multiple=True, metavar="NAME=VALUE", callback=parse_env, help=f"{text} {more}"
        )
    if name == "bind":
        return click.option(
            flag, multiple=True, metavar="PATH,...", callback=parse_bind, help=f"{text} Repeatable."
        )
    if isinstance(inner, msgspec.inspect.VarTupleType):
        return click.option(flag, multiple=True, metavar="ARG...", help=text)
    return click.option(flag, *SHORT.get(name, ()), metavar=_metavar(name), help=text)


def _metavar(name: str) -> str:
    last = name.rpartition("_")[2]
    return METAVARS.get(name) or METAVARS.get(last) or last.upper()


def resolve_options(
    config: Path | None,
    options: Mapping[str, Any],
    *,
    no_environment: bool = False,
    site: Site | None = None,
) -> Resolved:
    """Resolve the deployment that `deployment_options` were given for, and show its warnings.

    Raises:
        ConfigError: with every problem of the file, the environment and the flags.
    """
    environ = environment_for(options, os.environ, no_environment=no_environment)
    resolved = resolve(config, flags_of(options), environ, site, check_entry)
    for warning in resolved.warnings:
        click.echo(f"warning: {warning}", err=True)
    return resolved


def flags_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, of those that are keys of a deployment."""
    known = {*GLOBAL_TYPES, *MODEL_TYPES}
    return {name: value for name, value in options.items() if name in known and value not in (None, (), {})}


def environment_for(
    options: Mapping[str, Any], environ: Mapping[str, str], *, no_environment: bool = False
) -> dict[str, str]:
    """Return the environment that the options leave to a deployment; a token given as a flag is warned of."""
    kept = dict(environ)
    if no_environment:
        kept = {name: value for name, value in kept.items() if not name.startswith("AEGIS_")}
        kept.update({name: environ[name] for name in ("AEGIS_PLATFORM_DIR",) if name in environ})
    if token := options.get("hf_token"):
        click.echo("warning: --hf-token is visible to every user of this machine; use HF_TOKEN", err=True)
        kept["HF_TOKEN"] = token
    return kept


def parse_env(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Return the variables of `NAME=VALUE` arguments, of lists of them, and of the files that they name.

    Raises:
        click.BadParameter: one is neither, or a file cannot be read.
    """
    result: dict[str, str] = {}
    for text in given:
        try:
            result |= read_variables(text)
        except ConfigError as error:
            raise click.BadParameter(error.message, ctx, param) from None
    return result


def parse_bind(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the paths of comma lists."""
    del ctx, param
    return tuple(path for text in given for path in split_binds(text))
