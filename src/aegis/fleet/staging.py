"""A deployment on its nodes -> what is staged where, and what its servers load afterwards: for `aegis stage` and launches."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from aegis.errors import ConfigError, SiteError
from aegis.fleet.environments import expanded
from aegis.fleet.nodes import Host, allocation
from aegis.fleet.prepare import place_on
from aegis.fleet.weights import find_weights, snapshot_of
from aegis.staging.download import download, missing
from aegis.staging.environment import content_key, unpacked
from aegis.staging.listing import File, Item
from aegis.staging.local import adopt
from aegis.staging.plan import Plan, make_plan
from aegis.staging.want import UNKNOWN, Site, absolute, expand, is_tarball, wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from aegis.placement import Placement
    from aegis.spec.deployment import Deployment, ModelEntry
    from aegis.spec.platform import Platform
    from aegis.spec.resolve import Resolved
    from aegis.staging.want import Want


class Ground(NamedTuple):
    """Where a deployment is to be staged."""

    platform: Platform
    machines: tuple[Host, ...]
    by_model: tuple[tuple[str, ...], ...]  # per model, the nodes that hold a member of it
    site: Site
    real: bool  # these are nodes, not stand-ins for those that a job will have

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return tuple(host.name for host in self.machines)


def ground_of(resolved: Resolved, environ: Mapping[str, str], *, imagine: bool = False) -> Ground:
    """Return the nodes of this allocation, or of this machine, and who needs what.

    Args:
        resolved: the deployment.
        environ: of the job.
        imagine: outside of a job, stand-ins will do.

    Raises:
        AegisError: this is no allocation, or the instances do not fit.
    """
    real = True
    hosts: list[Host] | None
    try:
        hosts = allocation(resolved.platform, environ, resolved.deployment.spare_nodes)
    except SiteError:
        if not imagine:
            raise
        hosts, real = None, False
    platform, placement = place_on(resolved.platform, resolved.deployment, len(hosts) if hosts else None)
    machines = hosts or [Host(f"node {n + 1}", "", "") for n in range(placement.nodes)]
    site = site_of(platform, environ, real=real)
    return ground_at(platform, machines, placement, site, real=real)


def ground_at(
    platform: Platform, machines: Sequence[Host], placement: Placement, site: Site, *, real: bool = True
) -> Ground:
    """Return the nodes of a placement, and who needs what; a spare node may have to stand in for any, and needs all."""
    names = [host.name for host in machines]
    spares = tuple(names[placement.nodes :])
    by_model = tuple((*each, *spares) for each in hosts_by_model(placement, names))
    return Ground(platform, tuple(machines), by_model, site, real)


def hosts_by_model(placement: Placement, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return, per model, the nodes that hold a member of one of its instances, in the order of the nodes."""
    models = 1 + max(instance.model for instance in placement.instances)
    nodes: list[set[int]] = [set() for _ in range(models)]
    for instance in placement.instances:
        nodes[instance.model].update(member.node for member in instance.members)
    return tuple(tuple(names[node] for node in sorted(each)) for each in nodes)


def site_of(platform: Platform, environ: Mapping[str, str], *, real: bool = True) -> Site:
    """Return what the paths on the nodes follow from.

    Raises:
        ConfigError: the platform's node-local path names a variable that is not set.
    """
    local = platform.node.local_path
    return Site(
        local_path=expand(local, environ) if real else local,
        work_dir=os.getcwd(),  # noqa: PTH109 - text
        uid=os.getuid(),
        home=str(expanded("~")),
    )


def fetch(
    deployment: Deployment, environ: Mapping[str, str], token: str | None, tell: Callable[[str], None]
) -> None:
    """Download the models that ask for it onto this machine; those that are there are not fetched again.

    Raises:
        AegisError: one cannot be had; offline, what is missing is named.
    """
    program = str(expanded(deployment.venv) / "bin" / "hf") if deployment.venv else "hf"
    secret = {"HF_TOKEN": token} if token else {}
    for entry in deployment.models:
        if not entry.download_weights or entry.engine == "sim":
            continue
        source = expanded(entry.model_source) if entry.model_source else None
        if source is not None and source.is_dir() and not missing(str(source)):
            continue
        tell(f"downloading {entry.model}")
        download(
            entry.model,
            program=program,
            hf_home=str(expanded(deployment.hf_home).absolute()),
            local_dir=str(source) if source else None,
            environ={**environ, **secret},
            tell=tell,
        )


def wants_of(
    deployment: Deployment, ground: Ground, *, hashed: bool = True, gone: bool = False
) -> list[Want]:
    """Return what the nodes need.

    Args:
        deployment: what is served.
        ground: where.
        hashed: read a conda-pack tarball to know where it goes; else a word stands for its hash.
        gone: sources need not be there: where they went is asked for, not what they hold.

    Raises:
        ConfigError: weights or the environment are not there; all problems are listed.
    """
    problems, weights = [], []
    for entry in deployment.models:
        try:
            weights.append(source_of(entry, deployment, gone=gone))
        except ConfigError as error:
            problems.append(error)
            weights.append(None)
    key = None
    if deployment.conda_env and is_tarball(deployment.conda_env):
        try:
            tarball = absolute(deployment.conda_env, ground.site)
            key = content_key(tarball) if hashed else None
        except ConfigError as error:
            if not gone:
                problems.append(error)
    if problems:
        raise ConfigError("\n".join(each.message for each in problems), hint=problems[0].hint)
    return wanted(deployment, weights, ground.by_model, ground.site, key)


def source_of(entry: ModelEntry, deployment: Deployment, *, gone: bool = False) -> str | None:
    """Return the directory whose files are staged for a model; None where nothing is.

    Raises:
        ConfigError: it is not there, and was not said to be gone.
    """
    if entry.engine == "sim":
        return None
    if entry.model_source and gone:
        source = str(expanded(entry.model_source))
        is_entry = source.rstrip("/").rpartition("/")[2].startswith("models--")
        return f"{source}/snapshots/{UNKNOWN}" if is_entry else source
    if entry.model_source:
        return find_weights(entry, skip_staging=False).path
    place = expanded(deployment.hf_home).absolute() / "hub" / f"models--{entry.model.replace('/', '--')}"
    return str(snapshot_of(place)) if entry.download_weights and place.is_dir() and not gone else None


@contextmanager
def planned(
    wants: Sequence[Want],
    deployment: Deployment,
    *,
    only: Iterable[str] = (),
    dry_run: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Plan]:
    """Look at the sources, and keep an environment unpacked meanwhile; yield the plan.

    Args:
        wants: what the nodes need.
        deployment: what is served.
        only: the nodes to stage to; none: all.
        dry_run: the tarball stands for the environment: nothing is unpacked.
        tell: gets a line for what takes its time.

    Raises:
        AegisError: a source cannot be staged.
    """
    downloads = {entry.name for entry in deployment.models if entry.download_weights}
    with ExitStack() as stack:
        sources = {}
        for want in wants:
            if want.kind == "environment" and not dry_run:
                tell(f"unpacking {want.name}")
                sources[want.source] = stack.enter_context(
                    unpacked(want.source, tempfile.gettempdir(), os.path.basename(want.destination))  # noqa: PTH119 - text
                )
        moving = [want for want in wants if not want.in_place or want.name in downloads]
        plan = make_plan(moving, sources, only)
        for item, want in zip(plan.items, plan.wants, strict=True):
            if want.in_place and not dry_run:
                tell(f"reading {want.name}")
                adopt(item)
        yield plan


def loaded_from(wants: Iterable[Want]) -> dict[str, str]:
    """Return what servers load after staging, by the path that they would load without it."""
    return {want.source: want.loaded for want in wants}


@contextmanager
def to_clean(wants: Sequence[Want], only: Iterable[str] = ()) -> Iterator[Plan]:
    """Yield the destinations that are to be removed: the sources may be gone by now, and are not looked at."""
    chosen = set(only)
    staged = tuple(want for want in wants if not want.in_place and UNKNOWN not in want.destination)
    items = tuple(
        Item(
            source=want.source,
            destination=want.destination,
            files=(File(".", 0, 0, 0o644, "."),) if want.kind == "image" else (),
            hosts=tuple(host for host in want.hosts if not chosen or host in chosen),
        )
        for want in staged
    )
    hosts = tuple(dict.fromkeys(host for item in items for host in item.hosts))
    yield Plan(items=items, wants=staged, hosts=hosts)
