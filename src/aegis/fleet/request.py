"""From resolved deployments to the request of one job."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from aegis.errors import ConfigError, SiteError
from aegis.fleet.gateways import gateway_count
from aegis.fleet.prepare import place_on
from aegis.fleet.weights import find_weights
from aegis.runs import family, slug
from aegis.schedulers.base import Component, JobRequest, Resources
from aegis.spec.dump import dump_deployment, dump_platform
from aegis.spec.platforms import is_built_in
from aegis.spec.service import format_moment, parse_until
from aegis.spec.walltime import format_walltime, parse_walltime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.placement import Placement
    from aegis.schedulers.base import After
    from aegis.schedulers.transport import Transport
    from aegis.spec.deployment import Deployment
    from aegis.spec.platform import Platform
    from aegis.spec.resolve import Resolved

SHORTEST = 10.0  # seconds in which a job of a service can do anything
# Where no Python is named: the one of `aegis` on the far side's PATH, which may be a link to a script of an environment
FIND_PYTHON = 'p=$(command -v aegis) && p=$(readlink -f -- "$p") && [ -x "${p%/*}/python" ] && printf %s "${p%/*}/python"'


class Place(Struct, frozen=True):
    """The machine that a job is submitted from: this one, or a login node at the far end of ssh."""

    home: str
    folder: str  # absolute: what relative paths start from
    python: str  # holds aegis

    @classmethod
    def here(cls) -> Place:
        """Return this machine, as this process sees it."""
        return cls(os.path.expanduser("~"), os.getcwd(), sys.executable)  # noqa: PTH109, PTH111 - text

    @classmethod
    def there(cls, transport: Transport, aegis_env: str | None) -> Place:
        """Return the far side; `aegis_env` is the environment that holds aegis there.

        Raises:
            SiteError: no aegis is found there.
        """
        home = transport.home()
        if aegis_env:
            return cls(home, home, "")
        found = transport.run(["bash", "-c", FIND_PYTHON])
        if found.code or not found.out.strip():
            raise SiteError(
                f"there is no aegis on {transport.name}",
                hint="install it there, or name the environment that holds it with --aegis-env",
            )
        return cls(home, home, found.out.strip().splitlines()[-1])

    def absolute(self, path: str) -> str:
        """Return a path as this machine means it; links stay as the user wrote them."""
        if path == "~" or path.startswith("~/"):
            path = self.home + path[1:]
        return os.path.normpath(Path(self.folder) / path)


def job_request(
    resolved: Sequence[Resolved], place: Place, name: str | None = None, after: After | None = None
) -> JobRequest:
    """Return the job that serves some deployments, each on nodes of its own; refused here if one cannot be placed.

    Args:
        resolved: one for an ordinary job; they share scheduler and environment.
        place: where paths mean what they say.
        name: of the job (default: the first deployment's).
        after: the job that it takes over from.

    Raises:
        PlacementError: one does not fit.
        DeploymentError: more gateways than nodes.
        ConfigError: what is needed to ask for nodes is missing, or the time of the service is over.
    """
    first = resolved[0].deployment
    name = name or first.name or slug(first.models[0].name)
    work_dir = place.absolute(first.work_dir or ".")
    env = place.absolute(first.aegis_env) if first.aegis_env else None
    if any(each.deployment.keep_alive for each in resolved):
        resolved = [_lasting(resolved, name, work_dir, env, after)]
        first = resolved[0].deployment
    inside = msgspec.structs.replace(place, folder=work_dir)
    return JobRequest(
        name=name,
        components=tuple(_component(each, inside) for each in resolved),
        work_dir=work_dir,
        python=f"{env}/bin/python" if env else place.python,
        service=first.service,
        after=after,
    )


def _lasting(
    resolved: Sequence[Resolved], name: str, work_dir: str, env: str | None, after: After | None
) -> Resolved:
    """Return a deployment of which every job of the service makes the next one: nothing in it depends on who submits it."""
    if len(resolved) > 1:
        raise ConfigError(
            "a job of several components is not kept alive", hint="submit the models as one deployment"
        )
    deployment = resolved[0].deployment
    lasting = msgspec.structs.replace(
        deployment, service=deployment.service or slug(name), work_dir=work_dir, aegis_env=env
    )
    if deployment.until and deployment.walltime:
        now = time.time()
        end, begins = parse_until(deployment.until, now), max(now, after.time or now) if after else now
        if end - begins < SHORTEST:
            raise ConfigError(f"the service ends before the job can serve: until {deployment.until}")
        lasting = msgspec.structs.replace(lasting, until=format_moment(end))
        if end - begins < parse_walltime(deployment.walltime):  # the last job: nobody comes after it
            lasting = msgspec.structs.replace(lasting, walltime=format_walltime(end - begins), overlap=None)
    return msgspec.structs.replace(resolved[0], deployment=lasting)


def _component(resolved: Resolved, place: Place) -> Component:
    deployment, platform, placement = _placed(resolved)
    gateway_count(resolved, placement.nodes)
    log_dir = place.absolute(deployment.log_dir)
    file = deployment.endpoints_file
    endpoints = file if file.startswith("{run_dir}") else place.absolute(file)
    own = None if is_built_in(resolved.platform) else resolved.platform
    named = msgspec.structs.replace(
        deployment, endpoints_file=endpoints, log_dir=log_dir, platform=resolved.platform.name
    )
    models = tuple(entry.name for entry in deployment.models)
    stem = slug(models[0])
    group = slug(resolved.entry.model_family) if resolved.entry else family(stem)
    return Component(
        models=models,
        folder=f"{log_dir}/{group}",
        stem=stem,
        endpoints_file=endpoints,
        deployment=dump_deployment(named, brief=True),
        resources=_resources(named, platform, placement, simulated=_is_simulated(resolved)),
        profile=dump_platform(own) if own else "",
        profile_name=own.name if own else "",
    )


def _placed(resolved: Resolved) -> tuple[Deployment, Platform, Placement]:
    """Return the deployment with the devices pinned that it will be placed on, and that placement."""
    deployment, platform = resolved.deployment, resolved.platform
    if platform.launcher == "local":
        placed, placement = place_on(platform, deployment, platform.nodes)
        for entry in deployment.models:  # the weights are on this machine or nowhere
            if not entry.download_weights:
                find_weights(entry, skip_staging=deployment.skip_staging)
        return deployment, placed, placement
    if not platform.node.devices and not deployment.gpus_per_node and not _is_simulated(resolved):
        raise ConfigError(
            f"platform {platform.name} does not say how many devices a node has",
            hint="give --gpus-per-node, or write a profile of your site that extends it",
        )
    nodes = deployment.nodes or (None if platform.node.devices or deployment.gpus_per_node else 1)
    placed, placement = place_on(platform, deployment, nodes)
    if platform.shared_nodes and not deployment.gpus_per_node and platform.node.devices:
        used = most_devices(placement)
        deployment = msgspec.structs.replace(deployment, gpus_per_node=used)
    return deployment, placed, placement


def _is_simulated(resolved: Resolved) -> bool:
    """Tell whether a job needs no devices; who names a number of them wants them all the same."""
    deployment = resolved.deployment
    return not deployment.gpus_per_node and all(entry.engine == "sim" for entry in deployment.models)


def _resources(
    deployment: Deployment, platform: Platform, placement: Placement, *, simulated: bool
) -> Resources:
    devices = None if simulated else deployment.gpus_per_node or platform.node.devices
    shares = devices if platform.shared_nodes and devices else 0
    memory = shares * (platform.memory_per_device_gib or 0)
    return Resources(
        nodes=(deployment.nodes or placement.nodes) + deployment.spare_nodes,
        devices=devices,
        device_type=deployment.resource_type or platform.gpu_type,
        device_option=platform.gpus,
        cpus=deployment.cpus_per_node or shares * (platform.cpus_per_device or 0) or None,
        memory=deployment.mem_per_node or (f"{memory}G" if memory else None),
        walltime=deployment.walltime,
        queue=deployment.queue,
        account=deployment.account,
        qos=deployment.qos,
        constraint=deployment.constraint,
        nodelist=deployment.nodelist,
        exclude=deployment.exclude,
        filesystems=deployment.filesystems,
        directives=(*platform.directives, *deployment.directives),
    )


def most_devices(placement: Placement) -> int:
    """Return how many devices the fullest node uses."""
    used: dict[int, int] = {}
    for instance in placement.instances:
        for member in instance.members:
            used[member.node] = used.get(member.node, 0) + len(member.devices)
    return max(used.values(), default=0)
