"""Scripts that start the workers of a node with Dynamo, as the guide's `node_N_run.sh`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from aegis.planner.emit.flags import arguments, sglang_flags, vllm_flags
from aegis.planner.emit.text import comments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.emit.nodes import Place
    from aegis.planner.emit.servers import Server

# Ports that each worker takes one of, counted up from these.
SYSTEM_PORT = 8081  # of a worker's own status pages
EVENT_PORT = 20081  # of vLLM's cache events
NIXL_PORT = 20097  # where vLLM's workers agree on the transfer of KV caches
MEETING_PORT = 29501  # where the parts of a worker that spans nodes meet


def node_script(places: Sequence[Place], node: int, *, model: str, said: Sequence[str] = ()) -> str:
    """Return the script of a node; every word that came from a user is quoted. The first node has the frontend."""
    backend = places[0].server.backend
    lines = [
        "#!/usr/bin/env bash",
        comments(said).rstrip("\n"),
        "set -euo pipefail",
        'cd -- "$(dirname -- "${BASH_SOURCE[0]}")"',
        "trap 'kill $(jobs -pr) 2>/dev/null || true' EXIT INT TERM",
        "",
        *(_default("MODEL_PATH", model), _default("SERVED_MODEL_NAME", model)),
        _default("HEAD_NODE_IP", "0.0.0.0" if node == 0 else ""),  # noqa: S104 - all addresses of the first node
        ': "${HEAD_NODE_IP:?the address of node 0}"',
        'export ETCD_ENDPOINTS="${HEAD_NODE_IP}:2379" NATS_SERVER="nats://${HEAD_NODE_IP}:4222"',
    ]
    if node == 0:
        lines += ["", 'python3 -m dynamo.frontend --http-port "${PORT:-8000}" &']
    for place in places:
        lines += ["", *_worker(place, backend)]
    return "\n".join([*(line for line in lines), "", "wait -n", ""])


def _default(name: str, value: str) -> str:
    """Return a line that sets a variable unless the caller has."""
    return f'[ -n "${{{name}:-}}" ] || {name}={shlex.quote(value)}'


def _worker(place: Place, backend: str) -> list[str]:
    """Return the lines that start one worker."""
    server = place.server
    title = f"# {server.role} worker {place.number}"
    lines = [title + (f", node {place.rank} of {server.nodes}" if server.nodes > 1 else "")]
    if server.nodes > 1 and place.rank:
        address = f"NODE_{place.head}_IP"
        lines += [f': "${{{address}:?the address of node {place.head}}}"']
    variables, words = _environment(place), _words(place, backend)
    command = " \\\n    ".join([*variables, *words])
    return [*lines, f"{command} &"]


def _environment(place: Place) -> list[str]:
    """Return the variables of a worker, quoted."""
    server, devices = place.server, ",".join(map(str, place.gpus))
    found = [f"{device_variable(server.system)}={devices}", f"DYN_SYSTEM_PORT={SYSTEM_PORT + place.gpus[0]}"]
    if server.backend == "vllm":
        found += [f"DYN_VLLM_KV_EVENT_PORT={EVENT_PORT + place.gpus[0]}"]
        found += [f"VLLM_NIXL_SIDE_CHANNEL_PORT={NIXL_PORT + place.gpus[0]}"]
    return found


def device_variable(system: str) -> str:
    """Return the variable that chooses a system's devices."""
    if system.startswith("mi"):
        return "HIP_VISIBLE_DEVICES"
    return "ZE_AFFINITY_MASK" if system.startswith(("pvc", "b60")) else "CUDA_VISIBLE_DEVICES"


def _words(place: Place, backend: str) -> list[str]:
    """Return the command of a worker, one flag with its value to a line."""
    server = place.server
    if backend == "trtllm":
        words = [
            "python3 -m dynamo.trtllm",
            '--model-path "$MODEL_PATH"',
            '--served-model-name "$SERVED_MODEL_NAME"',
        ]
        words += [f"--extra-engine-args {server.config_file}"]
        if server.role != "agg":
            words += [f"--disaggregation-mode {server.role}"]
        if server.nodes > 1:
            words[0] = "trtllm-llmapi-launch " + words[0]
        return words
    name = "--model" if backend == "vllm" else "--model-path"
    words = [
        f"python3 -m dynamo.{backend}",
        f'{name} "$MODEL_PATH"',
        '--served-model-name "$SERVED_MODEL_NAME"',
    ]
    words += _pairs(dynamo_arguments(server))
    if server.nodes > 1:
        words += _meeting(place)
    return words


def dynamo_arguments(server: Server) -> tuple[str, ...]:
    """Return the arguments of Dynamo's worker for vLLM or SGLang: those of the engine, and vLLM's role."""
    if server.backend == "sglang":
        return arguments(sglang_flags(server))
    words = arguments(vllm_flags(server))
    return words if server.role == "agg" else (*words, "--disaggregation-mode", server.role)


def _meeting(place: Place) -> list[str]:
    """Return how the parts of a worker that spans nodes find each other."""
    host = '"${HEAD_NODE_IP}"' if place.head == 0 else f'"${{NODE_{place.head}_IP:-0.0.0.0}}"'
    words = [f"--nnodes {place.server.nodes}", f"--node-rank {place.rank}"]
    if place.server.backend == "sglang":
        return [*words, f"--dist-init-addr {host}:{MEETING_PORT}"]
    words += [f"--master-addr {host}", f"--master-port {MEETING_PORT}"]
    return [*words, *(["--headless"] if place.rank else [])]


def _pairs(words: Sequence[str]) -> list[str]:
    """Return quoted words, each flag together with its value."""
    pairs: list[str] = []
    for word in words:
        if word.startswith("--") or not pairs:
            pairs.append(shlex.quote(word))
        else:
            pairs[-1] += " " + shlex.quote(word)
    return pairs
