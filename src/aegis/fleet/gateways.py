"""The gateways of a launch: how many, on which nodes, and what their agents are told about them. Pure.

A gateway is one more process of its node's agent, no instance of a model: nothing that counts servers counts it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from aegis.engines.base import PORT, Cause, Health
from aegis.engines.ray import TOKEN_VARIABLE
from aegis.errors import DeploymentError, Problem
from aegis.fleet.environments import expanded
from aegis.fleet.order import JOB_VARIABLES, InstanceOrder, port_block
from aegis.placement import PORT_STRIDE
from aegis.preflight.finding import place_of, quantity
from aegis.registry.model import GATEWAY_TYPE
from aegis.schedulers.base import SECRET_NAMES
from aegis.spec.deployment import GATEWAY_PORT, REGISTRY_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aegis.fleet.order import Fleet, NodeOrder
    from aegis.placement import Placement
    from aegis.spec.resolve import Resolved

KEY_VARIABLE: Final = "VLLM_API_KEY"  # of the servers
START_SECONDS: Final = 120.0  # it imports a web server from a file system that all nodes read at once
STOP_SECONDS: Final = (
    18.0  # longer than servers have (`Policy` of agent/vitals.py): it passes on what they finish
)
HEALTH: Final = Health("/healthz", "", {})  # there is no model to ask for a token
CAUSES: Final = (
    Cause(r"[Aa]ddress already in use|EADDRINUSE", "port is taken: address already in use", permanent=False),
    Cause(r"(?:^|\n)error: ([^\n]*)", "{}", permanent=False),
    Cause(r"aegis: (cannot run [^\n]*)", "{}", permanent=False),
)


def gateway_count(resolved: Resolved, nodes: int) -> int:
    """Return how many gateways are wanted on so many nodes.

    Raises:
        DeploymentError: more than one a node.
    """
    wanted = resolved.deployment.gateways or 0
    if wanted == "per-node":
        return nodes
    if wanted > nodes:
        said = f"{quantity(wanted, 'gateway')} on {quantity(nodes, 'node')}: a node has one at most"
        raise DeploymentError(
            [Problem(place_of(resolved, "gateways"), said, "`gateways: per-node` is one on each")]
        )
    return wanted


def with_gateways(fleet: Fleet, orders: Sequence[NodeOrder], count: int) -> list[NodeOrder]:
    """Return the orders of all nodes, those of the first ones with a gateway besides; the orders given are changed."""
    port = fleet.deployment.gateway_port or default_port(fleet.placement)
    for position, order in enumerate(orders[:count]):
        order.instances.append(_order(fleet, position, port))
    return list(orders)


def default_port(placement: Placement) -> int:
    """Return the first port from 8080 on that is no server's, nor after both have moved by any number of blocks."""
    block = port_block(placement)
    taken = {REGISTRY_PORT % block}
    for instance in placement.instances:
        for member in instance.members:
            inside = range(member.internal_port, member.internal_port + PORT_STRIDE)
            taken.update(number % block for number in (member.port, *inside))
    port = GATEWAY_PORT
    while port % block in taken:
        port += 1
    return port


def gateway_ids(orders: Iterable[NodeOrder]) -> list[str]:
    """Return the service ids of all gateways of a launch."""
    return [each.id for order in orders for each in order.instances if each.service_type == GATEWAY_TYPE]


def _order(fleet: Fleet, position: int, port: int) -> InstanceOrder:
    host, name = fleet.hosts[position], f"{GATEWAY_TYPE}-{position}"
    return InstanceOrder(
        id=name,
        service_type=GATEWAY_TYPE,
        rank=0,
        argv=_command(fleet, host.bind),
        env={},
        unset=list(JOB_VARIABLES),
        mask="",
        cwd=fleet.work_dir,
        cpus=[],  # wherever there is room: the servers' cores are the busy ones
        address=host.address,
        bind=host.bind,
        port=port,
        internal_port=port,
        port_pinned=fleet.deployment.gateway_port is not None,
        port_block=port_block(fleet.placement),
        log=str(fleet.run.instances / f"{name}.log"),
        health=HEALTH,
        metrics={},
        causes=CAUSES,
        policy={
            "startup_timeout": START_SECONDS,
            "stop_grace": STOP_SECONDS,
            "max_restarts": fleet.deployment.max_restarts,
            **fleet.patience,
        },
        needs=(),
        metadata={"job": fleet.job, "node": host.name, "position": position},
    )


def _command(fleet: Fleet, bind: str) -> list[str]:
    """Return the command line; of the secrets that the agent adds to the environment it is left the one it needs.

    With keys of its own a gateway asks the servers with theirs. Without, a client has to know theirs: a gateway that
    presented it for everybody would open the servers to everybody.
    """
    keys = fleet.deployment.gateway_keys
    hidden = [name for name in (*SECRET_NAMES, TOKEN_VARIABLE) if not (keys and name == KEY_VARIABLE)]
    command = ["env", *(word for name in hidden for word in ("-u", name))]
    command += [fleet.python, "-P", "-m", "aegis", "gateway", "--registry-url", fleet.registry_url]
    command += ["--host", bind, "--port", PORT]
    return [*command, "--keys", str(Path(fleet.work_dir) / expanded(keys))] if keys else command
