"""A plan as a deployment that `aegis submit` takes as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from msgspec import Struct
from msgspec.structs import replace

from aegis.placement import nodes_needed, split
from aegis.planner.emit.flags import SIZES, arguments, sglang_flags, unmet, vllm_flags
from aegis.planner.emit.queues import choose
from aegis.planner.emit.text import comments
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.dump import dump_choices

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.planner.emit.servers import Server
    from aegis.spec.deployment import EngineName
    from aegis.spec.platform import Platform

NEAREST = {"trtllm": "vllm"}  # what Aegis serves in place of an engine that it does not know
SAME_MEMORY = 0.9  # of the planned device's: with less or more (the inverse) it is another device


class Memory(Struct, frozen=True):
    """GiB of one GPU, as planned."""

    used: float
    there: float
    system: str


class Deployed(Struct, frozen=True, kw_only=True):
    """A deployment, and what its user has to know."""

    deployment: Deployment
    notes: tuple[str, ...] = ()

    def to_yaml(self, head: Sequence[str] = ()) -> str:
        """Return the file: comments, then the keys that are not left at their defaults."""
        return comments([*head, *(f"- {note}" for note in self.notes)]) + "\n" + dump_choices(self.deployment)


def deployment_of(
    servers: Sequence[Server], replicas: int, platform: Platform | None, memory: Memory | None = None
) -> Deployed:
    """Return the deployment of so many replicas of these workers.

    Without a platform it is for whatever the submission finds. What the platform cannot take is told in capitals.
    """
    entries = tuple(_entry(server, replicas) for server in servers)
    notes = [
        note for server in servers for note in (*_other_engine(server), *unmet(server, entries[0].engine))
    ]
    planned = servers[0].gpus_per_node
    if platform is None:
        deployment = Deployment(models=entries)
        notes.append(f"planned for nodes of {planned} GPUs, and no platform: name one with --platform")
        return Deployed(deployment=deployment, notes=tuple(dict.fromkeys(notes)))
    deployment = Deployment(models=entries, platform=platform.name)
    if platform.node.devices is None and platform.scheduler != "local":
        deployment = replace(deployment, gpus_per_node=planned)
    notes += _missing(platform)
    notes += _memory(platform, memory) if memory else ()
    node = replace(platform.node, devices=platform.node.devices or planned)
    devices = node.devices or planned
    nodes = nodes_needed(entries, node)
    slot = choose(platform, nodes)
    count = f"{nodes} node{'s' * (nodes > 1)} of {devices}"
    notes.append(f"{count}; {slot.said}" if slot.said else count)
    notes += _spread(entries, servers, platform.name, devices)
    deployment = replace(deployment, queue=slot.queue, walltime=slot.walltime)
    return Deployed(deployment=deployment, notes=tuple(dict.fromkeys(notes)))


def _entry(server: Server, replicas: int) -> ModelEntry:
    """Return workers as a model entry: sizes are keys of it, all else are arguments of the engine."""
    engine = cast("EngineName", NEAREST.get(server.backend, server.backend))
    flags = sglang_flags(server) if engine == "sglang" else vllm_flags(server)
    args = arguments(flags, without=SIZES)
    return ModelEntry(
        model=server.model,
        engine=engine,
        instances=server.count * replicas,
        tensor_parallel_size=server.split.tp * server.split.cp,
        pipeline_parallel_size=server.split.pp,
        data_parallel_size=server.split.dp,
        extra_vllm_args=args if engine == "vllm" else (),
        extra_sglang_args=args if engine == "sglang" else (),
    )


def _spread(
    entries: Sequence[ModelEntry], servers: Sequence[Server], name: str, devices: int
) -> Iterator[str]:
    """Yield which servers cross nodes that were planned within one."""
    for entry, server in zip(entries, servers, strict=True):
        nodes, _ = split(entry, devices)
        if nodes > server.nodes:
            within = f"{server.nodes} of {server.gpus_per_node} GPUs"
            yield f"A SERVER SPANS {nodes} nodes of {name} and was planned within {within}: it will be slower"


def _other_engine(server: Server) -> Iterator[str]:
    other = NEAREST.get(server.backend)
    if other:
        version = f" {server.version}" if server.version else ""
        yield (
            f"planned for {server.backend}{version}, which Aegis does not serve: {other} is nearest, "
            f"and the figures are not its own (plan with --backend {other})"
        )


def _missing(platform: Platform) -> Iterator[str]:
    """Yield the keys that the site asks for and only its user knows."""
    for key in platform.required:
        if key not in platform.defaults:
            flag = key.replace("_", "-")
            yield f"{platform.name} asks for `{key}`: give --{flag}, set AEGIS_{key.upper()}, or add it here"


def _memory(platform: Platform, planned: Memory) -> Iterator[str]:
    """Yield where the platform's devices are others than the planned ones, or too small."""
    kind, there = f"a {platform.node.device_kind} of {platform.name}", platform.node.device_memory_gib
    same = planned.system in platform.systems
    if there is not None and there < planned.used:
        larger = " (ask for its nodes with more, with `constraint`)" if same and there < planned.there else ""
        yield f"IT DOES NOT FIT: a GPU holds {planned.used:.1f} GiB, and {kind} has {there:g}{larger}"
    if platform.systems and not same:
        systems = " or ".join(platform.systems)
        yield f"planned for {planned.system}, and {kind} is {systems}: figures differ (plan with --system {platform.systems[0]})"
    elif there is not None and not same and not SAME_MEMORY < there / planned.there < 1 / SAME_MEMORY:
        yield f"planned for {planned.system} ({planned.there:.0f} GiB), and {kind} has {there:g} GiB: figures differ"
