"""Several models of the catalog as the components of one job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from aegis.errors import AegisError, ConfigError, DeploymentError, NotFoundError, Problem
from aegis.fleet.endpoints import is_own, of_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aegis.spec.resolve import Resolved

ALIKE = ("work_dir", "aegis_env", "platform", "scheduler")  # a job has one of each


def batch_name(resolved: Sequence[Resolved]) -> str:
    """Return the name of the job, as vec-inf makes it."""
    return "-".join(("BATCH", *(each.deployment.models[0].name for each in resolved)))


def resolve_batch(names: Sequence[str], resolve_one: Callable[[str], Resolved]) -> list[Resolved]:
    """Resolve every model, or say what is wrong with each.

    Raises:
        NotFoundError: nothing else is wrong than that some are not in the catalog.
        ConfigError: with every problem of every model, or they cannot be in one job.
    """
    resolved: list[Resolved] = []
    errors: list[AegisError] = []
    for name in names:
        try:
            resolved.append(_apart(resolve_one(name)))
        except (ConfigError, NotFoundError) as error:
            errors.append(error)
    if errors:
        raise _together(errors)
    _refuse_twins([each.deployment.models[0].name for each in resolved])
    _refuse_differences(resolved)
    return resolved


def _apart(resolved: Resolved) -> Resolved:
    """Return a model with an endpoints file of its own: all were told the same."""
    deployment = resolved.deployment
    if is_own(deployment.endpoints_file):
        return resolved
    file = of_model(deployment.endpoints_file, deployment.models[0].name)
    own = msgspec.structs.replace(deployment, endpoints_file=file)
    return msgspec.structs.replace(resolved, deployment=own)


def _together(errors: Sequence[AegisError]) -> AegisError:
    """Return several errors as one."""
    if len(errors) == 1:
        return errors[0]
    if all(isinstance(error, NotFoundError) for error in errors):
        return NotFoundError("\n".join(f"{error.message} ({error.hint})" for error in errors))
    problems: list[Problem] = []
    for error in errors:
        if isinstance(error, DeploymentError):
            problems += error.problems
        else:
            problems.append(Problem("MODEL", error.message, error.hint))
    return DeploymentError(tuple(dict.fromkeys(problems)))


def _refuse_twins(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"given twice: {', '.join(twice)}",
            hint="for more servers of one model use `aegis submit --instances`",
        )


def _refuse_differences(resolved: Sequence[Resolved]) -> None:
    """Refuse models that cannot be in one job."""
    first = resolved[0]
    if first.deployment.scheduler == "local" and len(resolved) > 1:
        raise ConfigError(
            "this machine cannot be shared out among several components",
            hint="list the models in one deployment file, under `models:`, and submit that",
        )
    problems = [
        Problem(
            each.origins[key],
            f"`{key}` of {each.deployment.models[0].name} is another than that of {first.deployment.models[0].name}",
            f"give --{key.replace('_', '-')}, which holds for both",
        )
        for each in resolved[1:]
        for key in ALIKE
        if getattr(each.deployment, key) != getattr(first.deployment, key)
    ]
    if problems:
        raise DeploymentError(problems)
