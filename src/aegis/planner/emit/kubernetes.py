"""The workers of a plan as a DynamoGraphDeployment (Kubernetes), the guide's `k8s_deploy.yaml`.

The form is that of the files that aiconfigurator 0.12.0 writes; engine files come in a ConfigMap instead of a shell.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aegis.planner.emit.shell import dynamo_arguments
from aegis.planner.emit.text import to_yaml
from aegis.planner.tables.versions import version_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aegis.planner.emit.servers import Server

# Dynamo's release by the oldest version of each engine that is in its image, newest first.
RELEASES = {
    "trtllm": (
        *(("1.3.0rc23", "1.3.0"), ("1.3.0rc14", "1.2.0"), ("1.3.0rc11", "1.1.0"), ("1.3.0rc5", "1.0.0")),
        *(("1.3.0rc1", "0.9.0"), ("1.2.0rc6", "0.8.1"), ("1.2.0rc2", "0.7.1"), ("1.1.0rc5", "0.6.1")),
    ),
    "vllm": (
        *(("0.24.0", "1.3.0"), ("0.20.1", "1.2.0"), ("0.19.0", "1.1.0"), ("0.16.0", "1.0.0")),
        *(("0.14.1", "0.9.0"), ("0.12.0", "0.8.1"), ("0.11.0", "0.7.1")),
    ),
    "sglang": (
        *(("0.5.16", "1.3.0"), ("0.5.11", "1.2.0"), ("0.5.10", "1.1.0"), ("0.5.9", "1.0.0")),
        *(("0.5.8", "0.9.0"), ("0.5.6", "0.8.1"), ("0.5.4", "0.7.1"), ("0.5.3", "0.6.1")),
    ),
}
OLDEST = "0.6.1"
RUNTIMES = {"trtllm": "tensorrtllm", "vllm": "vllm", "sglang": "sglang"}
SERVICES = {"trtllm": "TRTLLM", "vllm": "Vllm", "sglang": "SGLang"}
CONFIG_PATH = "/workspace/engine_configs"
LONGEST_NAME = 45  # characters of a name of Kubernetes; Dynamo adds its own
LOADING = {"periodSeconds": 30, "timeoutSeconds": 10, "failureThreshold": 60}


def manifests(
    servers: Sequence[Server],
    replicas: int,
    *,
    version: str,
    files: Mapping[str, Mapping[str, Any]],
    head: Sequence[str] = (),
) -> str:
    """Return the manifests; `files` are the engine files by name, which TensorRT-LLM's workers read."""
    backend, model = servers[0].backend, servers[0].model
    mode = "agg" if servers[0].role == "agg" else "disagg"
    name, image = _name(f"{model.rsplit('/', 1)[-1]}-{mode}"), runtime_image(backend, version)
    services: dict[str, Any] = {
        "Frontend": {
            "envFromSecret": "hf-token-secret",
            "componentType": "frontend",
            "replicas": 1,
            "extraPodSpec": {"mainContainer": {"image": image}},
        }
    }
    for server in servers:
        role = "" if server.role == "agg" else server.role.title()
        services[f"{SERVICES[backend]}{role}Worker"] = _service(server, replicas, name, image)
    graph = {
        "apiVersion": "nvidia.com/v1alpha1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": name},
        "spec": {"services": services},
    }
    if backend != "trtllm":
        return to_yaml(graph, head=head)
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-engine"},
        "data": {file: to_yaml(content) for file, content in files.items()},
    }
    return to_yaml(config, head=head) + "---\n" + to_yaml(graph)


def runtime_image(backend: str, version: str) -> str:
    """Return the image of the Dynamo release that has this version of an engine, or the next older one."""
    order = version_order(version)
    release = next((name for least, name in RELEASES[backend] if order >= version_order(least)), OLDEST)
    return f"nvcr.io/nvidia/ai-dynamo/{RUNTIMES[backend]}-runtime:{release}"


def _service(server: Server, replicas: int, name: str, image: str) -> dict[str, Any]:
    """Return one kind of workers."""
    container: dict[str, Any] = {"image": image, "command": ["python3", "-m", f"dynamo.{server.backend}"]}
    pod: dict[str, Any] = {}
    flag = "--model" if server.backend == "vllm" else "--model-path"
    args = [flag, server.model, "--served-model-name", server.model]
    if server.backend == "trtllm":
        args += ["--extra-engine-args", f"{CONFIG_PATH}/{server.config_file}"]
        if server.role != "agg":
            args += ["--disaggregation-mode", server.role]
        pod["volumes"] = [{"name": "engine-configs", "configMap": {"name": f"{name}-engine"}}]
        container["volumeMounts"] = [{"name": "engine-configs", "mountPath": CONFIG_PATH, "readOnly": True}]
    else:
        args += dynamo_arguments(server)
    container |= {"args": args, "startupProbe": {"httpGet": {"path": "/health", "port": 9090}, **LOADING}}
    service: dict[str, Any] = {"envFromSecret": "hf-token-secret", "componentType": "worker"}
    if server.role != "agg":
        service["subComponentType"] = server.role
    service["replicas"] = server.count * replicas
    if server.nodes > 1:
        service["multinode"] = {"nodeCount": server.nodes}
    service["resources"] = {"limits": {"gpu": str(-(-server.gpus // server.nodes))}}
    return service | {"sharedMemory": {"size": "64Gi"}, "extraPodSpec": {**pod, "mainContainer": container}}


def _name(text: str) -> str:
    """Return a name that Kubernetes takes."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name[-LONGEST_NAME:].strip("-") or "model"
