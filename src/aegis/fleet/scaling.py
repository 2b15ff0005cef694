"""Ask the head of a job for another number of servers, and wait for them; or describe a further job that adds them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from aegis.errors import ConfigError, DeadlineError, NotFoundError, PartialSuccess, SiteError
from aegis.fleet.endpoints import endpoint_lines
from aegis.fleet.progress import is_drained
from aegis.fleet.registries import registry_of
from aegis.runs import ENDED, slug
from aegis.spec.service import NAME, ONE_MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aegis.fleet.jobs import Jobs
    from aegis.registry.model import Granted, Service, Wish
    from aegis.runs import Manifest

REGISTRY_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0  # the head looks at least once a second
POLL_SECONDS: Final = 0.2
OWN_FILE: Final = "{run_dir}/aegis_endpoints.txt"
# Of the first job alone: its name, its nodes, and what it does besides serving
OF_ONE_JOB: Final = (
    *("name", "nodes", "nodelist", "spare_nodes", "endpoints_file", "wait"),
    *("map", "gateways", "gateway_port", "gateway_keys", "keep_alive", "until", "overlap"),
)


class Further(Struct, frozen=True):
    """A job to be submitted beside another."""

    deployment: dict[str, Any]  # keys of a deployment file
    instances: int
    service: str


def model_of(manifest: Manifest, name: str | None) -> str:
    """Return the model that is meant; one that is not named has to be the only one.

    Raises:
        ConfigError: it is not.
    """
    served = list(dict.fromkeys(manifest.models))
    if name is None and len(served) != 1:
        raise ConfigError(f"{manifest.job} serves {len(served)} models", hint=f"add --model {served[0]}")
    return served[0] if name is None else name


def refuse_idle(manifest: Manifest) -> None:
    """Refuse a job that has no servers to add to.

    Raises:
        SiteError: it has none.
    """
    if manifest.state in ENDED or not manifest.registry_url:
        what = "has ended" if manifest.state in ENDED else "has not started"
        raise SiteError(f"{manifest.job} {what}", hint="`aegis status` lists the jobs")


def scale(jobs: Jobs, manifest: Manifest, wish: Wish) -> Granted:
    """Tell the head of a job what is wished, and return what it makes of it.

    Raises:
        SiteError: the job does not run, or has no head that answers.
        ConfigError: it cannot be: no such model, or too few devices are free.
    """
    refuse_idle(manifest)
    with registry_of(jobs.transport, manifest, REGISTRY_SECONDS) as registry:
        asked = registry.wish(wish)
        deadline = time.monotonic() + ANSWER_SECONDS
        while asked.answer is None:
            if time.monotonic() > deadline:
                raise SiteError(
                    f"the head of {manifest.job} does not answer", hint=f"see `aegis logs {manifest.job}`"
                )
            time.sleep(POLL_SECONDS)
            try:
                asked = registry.asked(asked.id)
            except NotFoundError:  # the registry was started again
                asked = registry.wish(wish)
    if asked.answer.problem:
        raise ConfigError(asked.answer.problem, hint=asked.answer.hint or None)
    return asked.answer


def await_scaled(
    jobs: Jobs,
    manifest: Manifest,
    granted: Granted,
    say: Callable[[str], None],
    *,
    model: str,
    timeout: float,
) -> list[str]:
    """Wait until what starts is healthy and what leaves is gone; return the endpoints of the model.

    Raises:
        DeadlineError: it takes longer.
        PartialSuccess: some were given up.
    """
    deadline = time.monotonic() + timeout
    told: dict[str, str] = {}
    with registry_of(jobs.transport, manifest, REGISTRY_SECONDS) as registry:
        while True:
            found = {each.service_id: each for each in registry.services()}
            ours = [found[name] for name in (*granted.starting, *granted.leaving) if name in found]
            for each in ours:
                serves = each.status == "healthy" and each.service_id in granted.leaving
                if told.get(each.service_id) != each.status and not serves:
                    told[each.service_id] = each.status
                    say(f"{each.service_id} {each.status}")
            failed = [
                each for each in ours if each.status == "failed" and each.service_id in granted.starting
            ]
            waiting = _missing(granted.starting, found, failed) + _present(granted.leaving, found)
            if not waiting:
                break
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"after {timeout:g} s still not done: {', '.join(waiting)}",
                    hint=f"`aegis status {manifest.job}` shows them",
                )
            time.sleep(POLL_SECONDS)
    if failed:
        why = failed[0].metadata.get("reason") or "no reason given"
        raise PartialSuccess(
            f"{len(failed)} of {len(granted.starting)} new servers failed: {why}",
            hint=f"`aegis logs {manifest.job}` shows what they said",
        )
    return endpoint_lines(each for each in found.values() if each.metadata.get("model") == model)


def further_job(manifest: Manifest, others: Iterable[Manifest], wish: Wish) -> Further:
    """Return a job of the same deployment with that model alone, and as many servers as are missing.

    Args:
        manifest: of the job that runs.
        others: all jobs; those of the same service count, and the job itself.
        wish: how many servers there are to be in all of them.

    Raises:
        SiteError: the job does not run.
        ConfigError: none is missing, or the job has no such model.
    """
    refuse_idle(manifest)
    service = manifest.service or manifest.name
    service = service if NAME.fullmatch(service) else slug(service)
    mine = [each for each in others if each.job == manifest.job or each.service == service]
    there = sum(_count(each, wish.model) for each in mine if each.state not in ENDED)
    entry = next((each for each in _entries(manifest) if _name(each) == wish.model), None)
    if entry is None:
        raise ConfigError(
            f"{manifest.job} has no model `{wish.model}`", hint=f"it has {', '.join(manifest.models)}"
        )
    missing = wish.instances - there
    if missing <= 0:
        raise ConfigError(
            f"none is missing: {wish.model} has {there} already",
            hint="without --new-job the number of one job can be made smaller",
        )
    dropped = {*OF_ONE_JOB, *(ONE_MACHINE if manifest.job.startswith("local://") else ())}
    kept = {
        key: value
        for key, value in manifest.deployment.items()
        if key not in dropped and value not in (None, [])
    }
    entry = {key: value for key, value in entry.items() if value not in (None, [], {})}
    models = [{**entry, "instances": missing}]
    return Further(
        {**kept, "service": service, "endpoints_file": OWN_FILE, "models": models}, missing, service
    )


def _entries(manifest: Manifest) -> list[dict[str, Any]]:
    return list(manifest.deployment.get("models") or ())


def _name(entry: dict[str, Any]) -> str:
    return str(entry.get("served_model_name") or entry.get("model"))


def _count(manifest: Manifest, model: str) -> int:
    return sum(int(each.get("instances", 1)) for each in _entries(manifest) if _name(each) == model)


def _missing(names: Iterable[str], found: dict[str, Service], failed: list[Service]) -> list[str]:
    gone = {each.service_id for each in failed}
    return [
        name for name in names if name not in gone and (name not in found or found[name].status != "healthy")
    ]


def _present(names: Iterable[str], found: dict[str, Service]) -> list[str]:
    return [name for name in names if name in found and not is_drained(found[name])]
