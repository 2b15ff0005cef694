"""A model of the catalog, with the options of vec-inf's `launch`, as a deployment.

The entry lies above the platform and below the environment (`AEGIS_*`) and the flags. Engine arguments and variables given
for this launch merge with the entry's; paths to bind are added to them.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from aegis.errors import DeploymentError, Problem
from aegis.spec.catalog.arguments import split_binds
from aegis.spec.catalog.entry import ASSUMED, CatalogEntry
from aegis.spec.catalog.files import NAME, NAME_HINT
from aegis.spec.catalog.layer import Launch, base_on, read_arguments
from aegis.spec.catalog.lookup import SHIPPED, Catalog, merge, unknown_model
from aegis.spec.resolve import EntryCheck, Layer, Resolved, Setting, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.spec.catalog.layer import Exists
    from aegis.spec.platforms import Site

ENGINES = ("vllm", "sglang")
HUB_ID = re.compile(rf"{NAME.pattern}/{NAME.pattern}")


class Wishes(Struct, frozen=True, kw_only=True):
    """What vec-inf's `launch` takes that is no key of a deployment."""

    model_family: str | None = None
    model_variant: str | None = None
    model_weights_parent_dir: str | None = None
    hf_model: str | None = None
    vllm_args: str | None = None
    sglang_args: str | None = None


def exists_here(path: str) -> bool:
    """Tell whether a path is there, on this machine."""
    return os.path.exists(os.path.expanduser(path))  # noqa: PTH110, PTH111 - a user that nobody knows is no error


def resolve_model(
    name: str,
    catalog: Catalog,
    wishes: Wishes,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    site: Site | None = None,
    check: EntryCheck | None = None,
    exists: Exists = exists_here,
) -> Resolved:
    """Resolve a model of the catalog as a deployment.

    Args:
        name: of the model, or its id on the Hugging Face Hub.
        catalog: where it is looked for.
        wishes: options that are no keys of a deployment.
        flags: those that are, as `resolve` takes them.
        environ: the environment.
        site: where to look for profiles, and how to recognise the machine.
        check: finds further problems of the model.
        exists: tells whether a path is there, where the job will run.

    Raises:
        NotFoundError: the catalog has no such model, and nothing says how to serve it.
        DeploymentError: with every problem of the entry, the environment and the options.
    """
    if catalog.problems:
        raise DeploymentError(catalog.problems)
    named = {key: value for key, value in environ.items() if key != "AEGIS_MODEL"}  # this call names it
    launch = _launch(name, catalog, wishes, flags, named, exists=exists)
    resolved = resolve(
        None, launch.flags, named, site, check, base=lambda platform: base_on(platform, launch)
    )
    if wrong := [*_needed(resolved, catalog), *_uneven(resolved)]:
        raise DeploymentError(wrong)
    return msgspec.structs.replace(resolved, entry=_entry(launch, resolved))


def _launch(
    name: str,
    catalog: Catalog,
    wishes: Wishes,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    exists: Exists,
) -> Launch:
    """Return what is known of a launch before its platform is."""
    warnings: list[str] = []
    problems: list[Problem] = []
    found, below = _find(name, catalog, wishes, exists, warnings)
    given = {key: value for key, value in flags.items() if value is not None}
    if "model" in given:
        said = f"the model is {found} already"
        problems.append(Problem("--model", said, "its id on the Hub is --hf-model"))
    layer = merge(below, _asked(wishes))
    engine = _engine(layer, wishes, given, environ, problems)
    teller = _teller(engine, layer, wishes)
    text: str | None = getattr(wishes, f"{teller}_args")
    asked = Setting(text, f"--{teller}-args") if text else None
    arguments, told = read_arguments(layer, teller, asked, given, problems)
    return Launch(
        name=found,
        layer={**layer, f"{teller}_args": told},
        environment=catalog.environment,
        engine=engine,
        arguments=arguments,
        container=_container(given, catalog.environment.containers),
        flags=_with_binds(given, layer),
        environ=environ,
        exists=exists,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _find(
    name: str, catalog: Catalog, wishes: Wishes, exists: Exists, warnings: list[str]
) -> tuple[str, Layer]:
    """Return the model's name and settings, or a stand-in's where only its weights are known."""
    if known := catalog.find(name):
        catalog.entry(known)  # raises where it is wrong
        return known, catalog.layer(known)
    short = name.rstrip("/").rpartition("/")[2]
    if not NAME.fullmatch(short):
        raise DeploymentError([Problem("MODEL", f"`{name}` is no name for a model", NAME_HINT)])
    hub = wishes.hf_model or (name if HUB_ID.fullmatch(name) else None)
    usual = catalog.environment.defaults.get("model_weights_parent_dir")
    parent = wishes.model_weights_parent_dir or (
        usual.value if usual else ASSUMED["model_weights_parent_dir"]
    )
    if not hub and not exists(f"{parent}/{short}"):
        raise unknown_model(name, catalog)
    warnings.append(f"the catalog has no `{name}`: it gets one device, unless options say otherwise")
    stand_in: Layer = {
        "model_family": Setting(short, "MODEL"),
        "model_type": Setting("LLM", "MODEL"),
        "gpus_per_node": Setting(1, f"{SHIPPED}:0"),
        "num_nodes": Setting(1, f"{SHIPPED}:0"),
        "hf_model": Setting(hub, "MODEL"),
    }
    return short, merge(catalog.environment.defaults, stand_in)


def _asked(wishes: Wishes) -> Layer:
    """Return the options that are keys of an entry."""
    return {
        key: Setting(value, f"--{key.replace('_', '-')}")
        for key, value in msgspec.to_builtins(wishes).items()
        if value and not key.endswith("_args")
    }


def _engine(
    layer: Layer,
    wishes: Wishes,
    flags: dict[str, Any],
    environ: Mapping[str, str],
    problems: list[Problem],
) -> str:
    """Return the engine: as asked for, else the one whose arguments are given, else the entry's."""
    asked = flags.get("engine") or environ.get("AEGIS_ENGINE")
    told = [engine for engine in ENGINES if getattr(wishes, f"{engine}_args")]
    if len(told) > 1:
        problems.append(Problem("--sglang-args", "--vllm-args is given too", "a server has one engine"))
    elif told and asked in ENGINES and asked != told[0]:  # a simulated one stands for any
        problems.append(Problem(f"--{told[0]}-args", f"the engine is {asked}", "a server has one engine"))
    elif told and not asked:
        flags["engine"] = Setting(told[0], f"--{told[0]}-args")
    own = layer.get("engine")
    return str(asked or (told[0] if told else own.value if own else "vllm"))


def _teller(engine: str, layer: Layer, wishes: Wishes) -> str:
    """Return the engine whose arguments count: a simulated server is as large as the one it stands for."""
    told = [name for name in ENGINES if getattr(wishes, f"{name}_args")]
    own = layer.get("engine")
    wanted = (engine, *told, own.value if own else "vllm")
    return next((name for name in wanted if name in ENGINES), "vllm")


def _container(flags: dict[str, Any], words: tuple[str, ...]) -> Setting | None:
    """Take `--venv apptainer` out of the flags: it asks for a container."""
    if flags.get("venv") not in words:
        return None
    return Setting(flags.pop("venv"), "--venv")


def _with_binds(flags: dict[str, Any], layer: Layer) -> dict[str, Any]:
    """Return the flags with the entry's paths to bind before theirs."""
    if not (more := flags.get("bind")):
        return flags
    own = layer.get("bind", Setting("", ""))
    origin = f"{own.origin}, --bind" if own.value else "--bind"
    return {**flags, "bind": Setting((*split_binds(own.value), *more), origin)}


def _needed(resolved: Resolved, catalog: Catalog) -> list[Problem]:
    """Return what the site's environment.yaml insists on and nobody has given; there is always a working directory."""
    return [
        Problem(each.origin, f"`{key}` is required", f"give --{key.replace('_', '-')}, or set {each.value}")
        for key, each in catalog.environment.required.items()
        if key != "work_dir" and getattr(resolved.deployment, key, "") is None
    ]


def _uneven(resolved: Resolved) -> list[Problem]:
    """Return a problem where the devices of the job are not those that its servers take."""
    deployment, (model,) = resolved.deployment, resolved.deployment.models
    if not deployment.nodes or not deployment.gpus_per_node:
        return []
    offered, taken = deployment.nodes * deployment.gpus_per_node, model.instances * model.devices
    if offered == taken:
        return []
    sizes = f"tensor {model.tensor_parallel_size} x pipeline {model.pipeline_parallel_size} x data {model.data_parallel_size}"
    said = (
        f"{deployment.nodes} x {deployment.gpus_per_node} devices are asked for, and {model.name} takes {taken}"
        f" ({'' if model.instances == 1 else f'{model.instances} instances of '}{sizes})"
    )
    hint = "change --num-nodes or --gpus-per-node, or --tensor-parallel-size and --pipeline-parallel-size"
    return [Problem(resolved.origins["gpus_per_node"], said, hint)]


def _entry(launch: Launch, resolved: Resolved) -> CatalogEntry:
    """Return the entry as it is launched."""
    values = {key: setting.value for key, setting in launch.layer.items()}
    return CatalogEntry(model_name=launch.name, **{**values, "engine": resolved.deployment.models[0].engine})
