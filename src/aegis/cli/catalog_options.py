"""The options of vec-inf's `launch` that are no keys of a deployment, and a model of the catalog with all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aegis.cli.options import environment_for, flags_of
from aegis.preflight import check_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from aegis.spec.platforms import Site
    from aegis.spec.resolve import Resolved

OPTIONS = {
    "vllm_args": ("ARGS", "Arguments of vLLM, such as '--max-model-len=8192,--enable-prefix-caching'."),
    "sglang_args": (
        "ARGS",
        "Arguments of SGLang, such as '--context-length=8192,--mem-fraction-static=0.85'.",
    ),
    "hf_model": ("ID", "Id on the Hugging Face Hub, for a model whose weights are not here."),
    "model_weights_parent_dir": (
        "DIR",
        "Directory in which the weights have a directory of the model's name.",
    ),
    "model_family": ("NAME", "Family of the model: logs are grouped by it."),
    "model_variant": ("NAME", "Variant of the model."),
}


def catalog_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that only a model of the catalog has."""
    for name, (metavar, text) in reversed(OPTIONS.items()):
        flag = f"--{name.replace('_', '-')}"
        function = click.option(flag, metavar=metavar, help=f"With MODEL: {text[:1].lower()}{text[1:]}")(
            function
        )
    return function


def catalog_only(options: Mapping[str, Any]) -> None:
    """Refuse options that only a model of the catalog has.

    Raises:
        click.UsageError: one was given.
    """
    for name in OPTIONS:
        if options.get(name) is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} needs a MODEL of the catalog (`aegis list`)")


def catalog_deployment(
    model: str,
    config: Path | None,
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    site: Site | None = None,
    exists: Callable[[str], bool] | None = None,
    no_environment: bool = False,
) -> Resolved:
    """Resolve a model of the catalog with the options that were given; the caller shows the warnings.

    Args:
        model: its name.
        config: a file of models to use instead of the catalog.
        options: `deployment_options` and `catalog_options`; others are passed over.
        environ: the environment.
        site: how to recognise the machine that the job is submitted on.
        exists: tells whether a path is there; default: on this machine.
        no_environment: pass over `AEGIS_*` variables.

    Raises:
        NotFoundError: there is no such model.
        ConfigError: with every problem of the entry, the environment and the options.
    """
    from aegis.spec.catalog.launch import Wishes, exists_here, resolve_model  # noqa: PLC0415 - start-up time
    from aegis.spec.catalog.lookup import load_catalog  # noqa: PLC0415 - as above

    return resolve_model(
        model,
        load_catalog(environ, config),
        Wishes(**{name: options.get(name) for name in OPTIONS}),
        flags_of(options),
        environment_for(options, environ, no_environment=no_environment),
        site=site,
        check=check_entry,
        exists=exists or exists_here,
    )
