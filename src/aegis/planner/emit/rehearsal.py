"""The same deployment with simulated servers, so that a choice can be tried before it is paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from aegis.placement import nodes_needed
from aegis.planner.emit.text import comments, to_yaml
from aegis.spec.deployment import Deployment, ModelEntry
from aegis.spec.dump import dump_choices

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.planner.emit.servers import Server
    from aegis.spec.platform import Node
    from aegis.spec.step_times import StepTimes

STEP_TIMES = "step_times.json"
PLATFORM = "sim-nodes.yaml"
DEPLOYMENT = "aegis-sim.yaml"


def rehearsal(
    server: Server, replicas: int, times: StepTimes, node: Node, folder: Path
) -> dict[str, str | bytes]:
    """Return the files of a rehearsal on one machine, by name.

    Args:
        server: the workers, aggregated.
        replicas: how many of them.
        times: how long their steps take.
        node: the nodes that are pretended; its number of devices is known.
        folder: where the files will lie.
    """
    entry = ModelEntry(
        model=server.model,
        engine="sim",
        instances=server.count * replicas,
        tensor_parallel_size=server.split.tp * server.split.cp,
        pipeline_parallel_size=server.split.pp,
        data_parallel_size=server.split.dp,
        extra_sim_args=_arguments(server, folder / STEP_TIMES),
    )
    nodes = nodes_needed([entry], node)
    deployment = Deployment(models=(entry,), platform=str(folder / PLATFORM))
    pretended = {
        "extends": "local",
        "description": f"{nodes} pretended nodes of {node.devices} devices, on this machine",
        "nodes": nodes,
        "node": {"devices": node.devices},
    }
    said = (
        "The same servers, simulated on this machine with the step times of the plan: aegis launch --config FILE",
        "Slower or faster than planned with `--time-scale 2` or 0.5 among extra_sim_args.",
    )
    return {
        STEP_TIMES: msgspec.json.format(msgspec.json.encode(times), indent=0) + b"\n",
        PLATFORM: to_yaml(pretended),
        DEPLOYMENT: comments(said) + "\n" + dump_choices(deployment),
    }


def _arguments(server: Server, file: Path) -> tuple[str, ...]:
    """Return the arguments of the simulated servers; their KV cache holds what was planned."""
    held = server.max_requests * server.split.dp * server.max_length
    stages = server.split.pp if server.role == "agg" else 1
    arguments = ["--step-times", str(file), "--max-model-len", str(server.max_length)]
    arguments += [
        "--max-num-seqs",
        str(max(1, server.max_requests // stages)),
        "--kv-cache-tokens",
        str(held),
    ]
    if server.cached_prefix:
        arguments += ["--prefix-cache", "on"]
    return tuple(arguments)
