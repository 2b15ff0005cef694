"""The flags that every command on a deployment shares: one for each key of the deployment file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from aegis.preflight import check_deployment
from aegis.spec.resolve import GLOBAL_TYPES, MODEL_TYPES, Resolved, is_scalar, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

SPREAD = tuple(
    name for name, type_ in MODEL_TYPES.items() if name.startswith("extra_") and not is_scalar(type_)
)
SHORT = {"walltime": ("--time",), "queue": ("--partition",), "model": (), "account": ("-A",)}


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
    result: list[str] = []
    current: str | None = None
    for position, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if arg == "--":
            return [*result, *args[position:]]
        if name in flags:
            current = name
            if equals:
                result += [f"{name}={item}" for item in _words(value)]
        elif current and name not in own:
            result += [f"{current}={item}" for item in _words(arg)]
        else:
            current = None
            result.append(arg)
    return result


def _words(text: str) -> list[str]:
    """Split `"--a 1 --b 2"` given as one argument; a value that only contains spaces stays whole."""
    return shlex.split(text) if text.startswith("-") and " " in text else [text]


def deployment_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--config` and a flag for each key of the deployment file."""
    for name, type_ in reversed([*MODEL_TYPES.items(), *GLOBAL_TYPES.items()]):
        function = _option(name, type_)(function)
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


def _option(name: str, type_: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    info = msgspec.inspect.type_info(type_)
    text = ((getattr(info, "extra_json_schema", None) or {}).get("description") or "").rstrip(".")
    text = f"{text[:1].upper()}{text[1:]}."
    flag = f"--{name.replace('_', '-')}"
    inner = info.type if isinstance(info, msgspec.inspect.Metadata) else info
    if isinstance(inner, msgspec.inspect.BoolType):
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=text)
    if isinstance(inner, msgspec.inspect.DictType):
        return click.option(
            flag, multiple=True, metavar="NAME=VALUE", callback=parse_env, help=f"{text} Repeatable."
        )
    if isinstance(inner, msgspec.inspect.VarTupleType):
        return click.option(flag, multiple=True, metavar="ARG...", help=text)
    return click.option(flag, *SHORT.get(name, ()), metavar=_metavar(name), help=text)


def _metavar(name: str) -> str:
    last = name.rpartition("_")[2]
    return {"size": "N", "instances": "N", "port": "PORT", "start": "PORT", "timeout": "SECONDS"}.get(
        last, last.upper()
    )


def resolve_options(
    config: Path | None, options: dict[str, Any], *, no_environment: bool = False
) -> Resolved:
    """Resolve the deployment that `deployment_options` were given for, and show its warnings.

    Raises:
        ConfigError: with every problem of the file, the environment and the flags.
    """
    known = {*GLOBAL_TYPES, *MODEL_TYPES}
    flags = {name: value for name, value in options.items() if name in known and value not in (None, (), {})}
    environ = dict(os.environ)
    if no_environment:
        environ = {name: value for name, value in environ.items() if not name.startswith("AEGIS_")}
        environ.update({name: os.environ[name] for name in ("AEGIS_PLATFORM_DIR",) if name in os.environ})
    if token := options.get("hf_token"):
        click.echo("warning: --hf-token is visible to every user of this machine; use HF_TOKEN", err=True)
        environ["HF_TOKEN"] = token
    resolved = resolve(config, flags, environ)
    check_deployment(resolved)
    for warning in resolved.warnings:
        click.echo(f"warning: {warning}", err=True)
    return resolved


def parse_env(ctx: click.Context, param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the mapping of `NAME=VALUE` arguments.

    Raises:
        click.BadParameter: one has no `=` or no name.
    """
    result = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"`{pair}` is not NAME=VALUE", ctx, param)
        result[name] = value
    return result
