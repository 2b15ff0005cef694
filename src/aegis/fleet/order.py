"""What each agent is told: commands, probes, ports and patience, as plain data. Pure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from aegis.engines import engine
from aegis.engines.base import Cause, Engine, Health, Start
from aegis.runs import RunDir, slug

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.fleet.nodes import Host
    from aegis.placement import Instance, Member, Placement
    from aegis.spec.deployment import Deployment, ModelEntry
    from aegis.spec.platform import Platform

PORT_BLOCK = 2000  # how far a launch moves when its default ports are taken: more than its own ports span
NO_PROXY_NODES = 256  # beyond this many names a site's suffix has to do: one variable holds 128 kB at most
JOB_VARIABLES = ("AEGIS_JOB", "AEGIS_RUN_DIR")  # of the head of the job, not of its servers
PUSH_SECONDS = 10.0
LINKED_PUSH_SECONDS = 2.0  # members of one instance learn of each other's restarts from the answers


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
    metadata: dict[str, Any]


class NodeOrder(Struct, kw_only=True):
    """One line of the fleet file; `node` stands first, by which agents find their line."""

    node: str
    registry: str
    push_interval: float
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
    job: str
    run: RunDir
    registry_url: str
    python: str
    work_dir: str
    path: str = "/usr/bin:/bin"  # PATH of the launch
    no_proxy: str = ""  # what the environment has already
    patience: dict[str, float] = {}  # seconds of the agent's policy, where the launch wants others


def expanded(path: str) -> Path:
    """Return a path with its `~` replaced, where that user is known."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for an unknown user


def service_names(models: Sequence[ModelEntry]) -> list[str]:
    """Return a name for each model entry, safe in URLs and file names, no two alike."""
    names: list[str] = []
    for model in models:
        name = base = slug(model.name)
        number = 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names


def node_orders(fleet: Fleet) -> list[NodeOrder]:
    """Return the order of every node, in the order of the hosts."""
    names = service_names(fleet.deployment.models)
    by_node: list[list[InstanceOrder]] = [[] for _ in range(fleet.placement.nodes)]
    linked: set[int] = set()
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
            push_interval=LINKED_PUSH_SECONDS if index in linked else PUSH_SECONDS,
            instances=orders,
        )
        for index, orders in enumerate(by_node)
    ]


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
    return InstanceOrder(
        id=identity,
        service_type=entry.engine if member.rank == 0 else f"{entry.engine}-member",
        rank=member.rank,
        argv=with_setup(kind.command(start), _setup(fleet)),
        env=_environment(fleet, start, kind),
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
        metrics=dict(kind.metrics),
        causes=kind.causes,
        policy={
            "startup_timeout": fleet.deployment.startup_timeout,
            "max_restarts": fleet.deployment.max_restarts,
            **fleet.patience,
        },
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
    """Return the instance's variables: the platform's, the engine's, ours, then the user's; devices always ours."""
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
    environment |= start.entry.env
    if platform.node.mask_variable:
        environment[platform.node.mask_variable] = ",".join(str(device) for device in start.member.devices)
    return environment


def _proxies(fleet: Fleet) -> dict[str, str]:
    """Return the site's proxies, and the names that must never go through one: every node of this job."""
    network = fleet.platform.network
    result: dict[str, str] = {}
    if network.http_proxy:
        result |= dict.fromkeys(
            ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), network.http_proxy
        )
    if network.all_proxy:
        result |= dict.fromkeys(("all_proxy", "ALL_PROXY"), network.all_proxy)
    direct = [*filter(None, fleet.no_proxy.split(",")), "localhost", "127.0.0.1", *network.no_proxy]
    if network.host_suffix:
        direct.append(network.host_suffix)
    if len(fleet.hosts) <= NO_PROXY_NODES:
        for host in fleet.hosts:
            direct += [host.name, host.name.partition(".")[0], host.address]
    joined = ",".join(dict.fromkeys(direct))
    return {**result, "no_proxy": joined, "NO_PROXY": joined}


def _setup(fleet: Fleet) -> list[str]:
    """Return the shell lines before the engine: the site's modules, then the environment that was named."""
    lines = list(fleet.platform.setup)
    if fleet.deployment.conda_env:
        lines += conda_lines(fleet.deployment.conda_env, fleet.platform.node.local_path)
    return lines


def conda_lines(environment: str, local_path: str) -> list[str]:
    """Return the shell lines that activate a conda environment.

    A directory is activated where it is; a conda-pack tarball is unpacked once per node, under a lock, in a folder that
    nobody else may write, at a path of its own per content stamp (size and time). What is not complete is not used.
    """
    import shlex  # noqa: PLC0415 - only where a conda environment is named

    return [
        f"conda_env={shlex.quote(environment)}",
        'if [ ! -d "$conda_env" ]; then',
        '  [ -f "$conda_env" ] || { echo "aegis: cannot run: no conda environment at $conda_env" >&2; exit 127; }',
        "  stamp=$(stat -c '%s-%Y-%n' -- \"$conda_env\" | cksum | cut -d' ' -f1)",
        f'  private="{local_path}"/aegis-env-$(id -u)',  # from the profile: may name $USER
        '  mkdir -m 700 -p -- "$private" && [ -O "$private" ] && [ ! -L "$private" ] ||',
        '    { echo "aegis: cannot run: $private is not ours" >&2; exit 127; }',
        '  unpacked="$private/$stamp"',
        "  (",
        "    flock 9",
        '    if [ ! -e "$unpacked/.complete" ]; then',
        '      rm -rf -- "$unpacked" && mkdir -- "$unpacked" && tar --force-local -xf "$conda_env" -C "$unpacked" &&',
        '        { [ ! -x "$unpacked/bin/conda-unpack" ] || "$unpacked/bin/conda-unpack"; } &&',
        '        touch -- "$unpacked/.complete" || { rm -rf -- "$unpacked"; exit 1; }',
        "    fi",
        '  ) 9>"$unpacked.lock" || { echo "aegis: cannot run: $conda_env could not be unpacked" >&2; exit 1; }',
        "  conda_env=$unpacked",
        "fi",
        '. "$conda_env/bin/activate" || exit 127',
    ]


def with_setup(argv: Sequence[str], setup: Sequence[str]) -> list[str]:
    """Return the command behind its set-up lines; arguments never pass through the shell's eyes."""
    if not setup:
        return list(argv)
    body = "\n".join([*setup, 'exec "$@"'])
    return ["bash", "-lc", body, "aegis", *argv]


def fleet_file(orders: Sequence[NodeOrder]) -> str:
    """Return the fleet file: JSON lines, one per node."""
    encode = msgspec.json.Encoder().encode
    return "".join(f"{encode(order).decode()}\n" for order in orders)
