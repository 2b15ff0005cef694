"""What a job needs to know before it starts, and what would make two jobs clash: asked by submit and by launch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from aegis.errors import ConfigError, NotFoundError
from aegis.placement import Placement, nodes_needed, place
from aegis.processes import is_alive
from aegis.runs import ENDED, known_runs
from aegis.spec.deployment import PORT_START, REGISTRY_PORT
from aegis.spec.machine import detect_machine, size_node

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aegis.spec.deployment import Deployment, ModelEntry
    from aegis.spec.platform import Node, Platform


def place_on(platform: Platform, deployment: Deployment, nodes: int | None) -> tuple[Platform, Placement]:
    """Return the platform with its devices counted, and the placement on at most so many nodes.

    Raises:
        PlacementError: it does not fit.
    """
    node = platform.node
    if deployment.gpus_per_node:
        node = granted(node, deployment.gpus_per_node)
    node = _sized(node, deployment.models, nodes or 1)
    placement = place(
        deployment.models,
        node,
        port_start=deployment.port_start or PORT_START,
        reserved_ports={deployment.registry_port or REGISTRY_PORT, deployment.gateway_port or 0},
        available_nodes=nodes,
    )
    return msgspec.structs.replace(platform, node=node), placement


def granted(node: Node, devices: int) -> Node:
    """Return the node of which a job may use the first so many devices; where they lie is kept where it is known."""
    sockets = tuple(tuple(each for each in socket if each < devices) for socket in node.sockets)
    known = devices <= len(node.device_cpus)
    return msgspec.structs.replace(
        node,
        devices=devices,
        device_cpus=node.device_cpus[:devices] if known else (),
        sockets=tuple(filter(None, sockets)) if devices <= sum(map(len, node.sockets)) else (),
    )


def _sized(node: Node, models: Sequence[ModelEntry], nodes: int) -> Node:
    """Return the node with its devices counted; CPU shares grow until the models fit the nodes that there are."""
    machine = detect_machine()
    for spread in range(nodes, 0, -1):
        sized = size_node(node, machine, models, spread)
        if nodes_needed(models, sized) <= nodes:
            break
    return sized


def refuse_shared_endpoints(file: Path, environ: Mapping[str, str], service: str | None = None) -> None:
    """Refuse a file that another live job keeps: two writers would take turns in it.

    Args:
        file: the file.
        environ: where jobs are indexed.
        service: whose jobs hand the file over to each other.

    Raises:
        ConfigError: a job keeps it, or there is no such folder.
    """
    if not file.parent.is_dir():
        raise ConfigError(
            f"the folder of the endpoints file is not there: {file.parent}",
            hint="make it, or choose another with --endpoints-file",
        )
    path = os.path.realpath(file)
    for run in known_runs(environ).values():
        try:
            other = run.read_manifest()
        except NotFoundError:
            continue
        if service and other.service == service:
            continue
        live = (
            other.state not in ENDED and is_alive(other.pid, other.pid_started) and other.pid != os.getpid()
        )
        if live and other.endpoints_file and os.path.realpath(other.endpoints_file) == path:
            raise ConfigError(
                f"{file} is the endpoints file of {other.job}, which is running",
                hint="choose another with --endpoints-file, or `aegis shutdown` that job",
            )
