"""What each agent is told: commands, probes, ports and patience, as plain data. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from aegis.engines import engine
from aegis.engines.base import Cause, Engine, Health, Start, load_names
from aegis.engines.ray import TOKEN_VARIABLE
from aegis.fleet.environments import (
    container_command,
    container_environment,
    container_lines,
    expanded,
    proxies,
    setup_lines,
    with_setup,
)
from aegis.registry.model import GATEWAY_TYPE
from aegis.runs import RunDir, slug
from aegis.schedulers.base import SECRET_NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.fleet.nodes import Host
    from aegis.placement import Instance, Member, Placement
    from aegis.spec.deployment import Deployment, ModelEntry
    from aegis.spec.platform import Platform

PORT_BLOCK = 2000  # how far a launch moves when its default ports are taken: more than its own ports span
NO_PROXY_NODES = 256  # beyond this many names a site's suffix has to do: one variable holds 128 kB at most
JOB_VARIABLES = ("AEGIS_JOB", "AEGIS_RUN_DIR")  # of the head of the job, not of its servers
PUSH_SECONDS = 10.0  # of a large fleet; a small one hears sooner of new orders
PUSHES_PER_SECOND = 50  # to one registry: a few hundredths of a core
HEAD_SECONDS = (
    300.0  # without a registry servers are found by nobody: after so long it has forgotten them, too
)
LINKED_PUSH_SECONDS = 2.0  # members of one instance learn of each other's restarts from the answers


class Need(Struct, frozen=True, kw_only=True):
    """Something that is staged to a node before an instance starts there (keys as `fleet/agent` reads them)."""

    manifest: str  # in it, or beside a single file
    length: int  # bytes of the manifest that say what was to be staged
    crc: int  # CRC-32 of those
    file: str = ""  # the single file; "": a directory, which is there as a whole or not at all
    size: int = 0
    mtime_ns: int = 0


class Staged(Struct, frozen=True, kw_only=True):
    """What servers load from their node, and wait for."""

    needs: tuple[tuple[Need, ...], ...] = ()  # per model entry; (): nothing is waited for
    environment: str | None = None  # conda environment, where a tarball was unpacked and staged
    image: str | None = None


class InstanceOrder(Struct, kw_only=True):
    """One member of one instance (keys as `fleet/agent` reads them)."""

    id: str
    service_type: str
    rank: int
    argv: list[str]
    env: dict[str, str]
    unset: list[str]
    mask: str  # the variable of `env` that names the devices
    cwd: str
    cpus: list[int]
    address: str
    bind: str
    port: int
    internal_port: int
    port_pinned: bool
    port_block: int
    log: str
    health: Health
    metrics: dict[str, tuple[str, ...]]
    causes: tuple[Cause, ...]
    policy: dict[str, float]
    needs: tuple[Need, ...]
    metadata: dict[str, Any]
    generation: int = 0  # starts that an instance of this name had elsewhere


class NodeOrder(Struct, kw_only=True):
    """One line of the fleet file; `node` stands first, by which agents find their line."""

    node: str
    registry: str
    push_interval: float
    head_patience: float = HEAD_SECONDS
    version: int = 0  # grows with each change
    stays: bool = True  # without instances, too: some may be added
    leaving: dict[str, float] = {}  # no longer among the instances -> seconds to finish what they run
    instances: list[InstanceOrder]


class Weights(Struct, frozen=True):
    """Where an engine finds a model."""

    path: str
    local: bool  # a directory of the node, so the hub is not asked


class Fleet(Struct, frozen=True, kw_only=True):
    """Everything that the orders of a launch follow from."""

    deployment: Deployment
    platform: Platform  # with the number of devices known
    placement: Placement
    hosts: tuple[Host, ...]
    weights: tuple[Weights, ...]  # per model entry
    staged: Staged = Staged()
    job: str
    run: RunDir
    registry_url: str
    python: str
    work_dir: str
    path: str = "/usr/bin:/bin"  # PATH of the launch
    no_proxy: str = ""  # what the environment has already
    patience: dict[str, float] = {}  # seconds of the agent's policy, where the launch wants others


def service_names(models: Sequence[ModelEntry]) -> list[str]:
    """Return a name for each model entry, safe in URLs and file names, no two alike."""
    names: list[str] = []
    for model in models:
        name = base = slug(model.name)
        number = 2
        while name in names or name == GATEWAY_TYPE:  # which gateways are called
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names


def node_orders(fleet: Fleet) -> list[NodeOrder]:
    """Return the order of every node, in the order of the hosts; spare nodes have no instances."""
    names = service_names(fleet.deployment.models)
    by_node: list[list[InstanceOrder]] = [[] for _ in fleet.hosts]
    linked: set[int] = set()
    usual = push_seconds(len(fleet.hosts))
    block = port_block(fleet.placement)
    for position, instance in enumerate(fleet.placement.instances):
        for member in instance.members:
            order = _instance_order(fleet, instance, member, names[instance.model], block)
            order.metadata["position"] = position
            by_node[member.node].append(order)
            if len(instance.members) > 1:
                linked.add(member.node)
    return [
        NodeOrder(
            node=fleet.hosts[index].name,
            registry=fleet.registry_url,
            push_interval=min(usual, LINKED_PUSH_SECONDS) if index in linked else usual,
            instances=orders,
        )
        for index, orders in enumerate(by_node)
    ]


def push_seconds(nodes: int) -> float:
    """Return how often each of so many agents tells the registry that it is there, and hears what is new."""
    return min(PUSH_SECONDS, max(1.0, nodes / PUSHES_PER_SECOND))


def port_block(placement: Placement) -> int:
    """Return how far apart the port ranges of two launches on one node are."""
    ports = [
        number
        for instance in placement.instances
        for member in instance.members
        for number in (member.port, member.internal_port)
    ]
    span = max(ports) - min(ports) + 100
    return -(-span // PORT_BLOCK) * PORT_BLOCK


def _instance_order(
    fleet: Fleet, instance: Instance, member: Member, model_name: str, block: int
) -> InstanceOrder:
    entry = fleet.deployment.models[instance.model]
    kind = engine(entry.engine)
    host = fleet.hosts[member.node]
    name = f"{model_name}-{instance.index}"
    linked = len(instance.members) > 1
    identity = f"{name}.rank{member.rank}" if linked and member.rank else name
    start = _start(fleet, instance, member, kind)
    argv, environment = _process(fleet, start, kind)
    return InstanceOrder(
        id=identity,
        service_type=entry.engine if member.rank == 0 else f"{entry.engine}-member",
        rank=member.rank,
        argv=argv,
        env=environment,
        mask=fleet.platform.node.mask_variable or "",
        unset=[*fleet.platform.unset, *JOB_VARIABLES],
        cwd=fleet.work_dir,
        cpus=list(member.cpus),
        address=host.address,
        bind=host.bind,
        port=member.port,
        internal_port=member.internal_port,
        # Members find each other on a port of the head's that is in all their commands: the head cannot move alone.
        port_pinned=fleet.deployment.port_start is not None or linked,
        port_block=block,
        log=str(fleet.run.instances / f"{identity}.log"),
        health=kind.health(entry),
        metrics=load_names(kind.metrics),
        causes=kind.causes,
        policy={
            "startup_timeout": fleet.deployment.startup_timeout,
            "max_restarts": fleet.deployment.max_restarts,
            **fleet.patience,
        },
        needs=fleet.staged.needs[instance.model] if fleet.staged.needs else (),
        metadata={
            "model": entry.name,
            "job": fleet.job,
            "instance": name,
            "rank": member.rank,
            "members": len(instance.members),
            "node": host.name,
            "devices": list(member.devices),
        },
    )


def _start(fleet: Fleet, instance: Instance, member: Member, kind: Engine) -> Start:
    weights = fleet.weights[instance.model]
    host = fleet.hosts[member.node]
    venv = fleet.deployment.venv
    return Start(
        entry=fleet.deployment.models[instance.model],
        instance=instance,
        member=member,
        platform=fleet.platform,
        weights=weights.path,
        weights_are_local=weights.local,
        address=host.address,
        bind=host.bind,
        master=fleet.hosts[instance.members[0].node].address,
        executable=str(expanded(venv) / "bin" / kind.program) if venv else kind.program,
        python=fleet.python,
    )


def _environment(fleet: Fleet, start: Start, kind: Engine) -> dict[str, str]:
    """Return the engine's variables: the platform's, the engine's, ours, then the user's; devices always ours."""
    platform, deployment = fleet.platform, fleet.deployment
    environment = dict(platform.env)
    if deployment.venv:
        venv = expanded(deployment.venv)
        environment |= {"VIRTUAL_ENV": str(venv), "PATH": f"{venv / 'bin'}:{fleet.path}"}
    environment |= _proxies(fleet)
    environment["HF_HOME"] = str(expanded(deployment.hf_home))
    if start.weights_are_local or deployment.skip_staging:
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment |= kind.environment(start)
    return environment | start.entry.env | _mask(start)


def _mask(start: Start) -> dict[str, str]:
    name = start.platform.node.mask_variable
    return {name: ",".join(str(device) for device in start.member.devices)} if name else {}


def _proxies(fleet: Fleet) -> dict[str, str]:
    """Return the site's proxies; no node of this job is reached through one."""
    hosts = fleet.hosts if len(fleet.hosts) <= NO_PROXY_NODES else ()
    names = [name for host in hosts for name in (host.name, host.name.partition(".")[0], host.address)]
    return proxies(fleet.platform, fleet.no_proxy, names)


def _process(fleet: Fleet, start: Start, kind: Engine) -> tuple[list[str], dict[str, str]]:
    """Return the command that the agent starts, and its variables."""
    command, environment = kind.command(start), _environment(fleet, start, kind)
    setup = setup_lines(fleet.deployment, fleet.platform, fleet.staged.environment)
    if not _contained(fleet, start):
        return with_setup(command, setup), environment
    mask = _mask(start)
    late = (*mask, *SECRET_NAMES, TOKEN_VARIABLE)  # known to the agent alone
    inside = {name: value for name, value in environment.items() if name not in late}
    argv = container_command(
        command,
        fleet.deployment,
        fleet.platform,
        fleet.work_dir,
        _folders(start, environment),
        staged=fleet.staged.image,
    )
    setup += container_lines(fleet.deployment, fleet.platform, late)
    return with_setup(argv, setup), container_environment(inside, {**_proxies(fleet), **mask})


def _contained(fleet: Fleet, start: Start) -> bool:
    """Tell whether the engine is in the image. Simulated servers never are: they run on the Python of this launch."""
    return fleet.deployment.image is not None and start.entry.engine != "sim"


def _folders(start: Start, environment: dict[str, str]) -> list[str]:
    """Return what a container must see besides: the weights, with the files that a cache entry links to."""
    folders = [environment["TMPDIR"]] if "TMPDIR" in environment else []
    if start.weights_are_local:
        weights = Path(start.weights)
        folders.append(str(weights.parents[1] if weights.parent.name == "snapshots" else weights))
    return folders


def fleet_file(orders: Sequence[NodeOrder]) -> str:
    """Return the fleet file: JSON lines, one per node."""
    encode = msgspec.json.Encoder().encode
    return "".join(f"{encode(order).decode()}\n" for order in orders)
