"""vLLM: `vllm serve` (flags and metric names as of 0.32; older names of a metric follow the current one)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.engines.base import (
    COMMON_CAUSES,
    INTERNAL_PORT,
    MASTER_PORT_OFFSET,
    PORT,
    Health,
    Start,
    completion_health,
    merge_args,
    option,
)
from aegis.engines.ray import command as ray_command
from aegis.engines.ray import uses_ray

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.engines.base import Cause
    from aegis.spec.deployment import ModelEntry

from aegis.spec.machine import CPU_KIND

KV_TRANSFER = "--kv-transfer-config"  # the servers of a group hand KV caches to each other
NIXL_OFFSET = 44  # within an instance's internal ports


class Vllm:
    """Servers of `vllm serve`."""

    name = "vllm"
    program = "vllm"
    causes: tuple[Cause, ...] = COMMON_CAUSES
    metrics: Mapping[str, tuple[str, ...]] = {
        "running": ("vllm:num_requests_running",),
        "waiting": ("vllm:num_requests_waiting",),
        "swapped": ("vllm:num_requests_swapped",),
        "kv_cache": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "cpu_cache": ("vllm:cpu_cache_usage_perc",),
        "prefix_hit_rate": ("vllm:gpu_prefix_cache_hit_rate",),
        "prefix_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
        "prefix_queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
        "prompt_tokens": ("vllm:prompt_tokens_total",),
        "generation_tokens": ("vllm:generation_tokens_total",),
        "prompt_progress": ("vllm:prompt_tokens_total",),
        "generation_progress": ("vllm:generation_tokens_total",),
        "succeeded": ("vllm:request_success_total",),
        "aborted": (),  # a reason of `succeeded`
        "first_token": ("vllm:time_to_first_token_seconds",),
        "token_to_token": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        "whole_request": ("vllm:e2e_request_latency_seconds",),
        "queue_time": ("vllm:request_queue_time_seconds",),
    }
    reserved: Mapping[str, str | None] = {
        "--host": None,
        "--port": "port_start",
        "--served-model-name": "served_model_name",
        "--tensor-parallel-size": "tensor_parallel_size",
        "-tp": "tensor_parallel_size",
        "--pipeline-parallel-size": "pipeline_parallel_size",
        "-pp": "pipeline_parallel_size",
        "--data-parallel-size": "data_parallel_size",
        "-dp": "data_parallel_size",
    }

    def command(self, start: Start) -> tuple[str, ...]:
        """Return `vllm serve ...`, inside of Ray's command where that was asked for."""
        defaults = start.platform.engine_args.get(self.name, ())
        ray = ("--distributed-executor-backend", "ray") if uses_ray(start) else ()
        words = (
            start.executable,
            "serve",
            start.weights,
            *serve_args(start),
            *merge_args(defaults, (*ray, *start.entry.extra_vllm_args)),
        )
        return ray_command(start, words) if ray else words

    def environment(self, start: Start) -> dict[str, str]:
        """Return ports that do not clash, the node's address, and CPU cores where there is no accelerator."""
        environment = {
            "VLLM_PORT": INTERNAL_PORT,
            "VLLM_NO_USAGE_STATS": "1",  # nodes without a way out would wait for it
            "DO_NOT_TRACK": "1",
        }
        if start.members > 1:
            environment["VLLM_HOST_IP"] = start.address
        if KV_TRANSFER in {arg.partition("=")[0] for arg in start.entry.extra_vllm_args}:
            environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] = start.address
            port = start.member.internal_port + NIXL_OFFSET
            environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(
                port
            )  # one for each data-parallel rank from here
        if uses_ray(start):
            environment["RAY_AUTH_MODE"] = "token"  # else whoever reaches its ports can run code as this user
        if start.platform.node.device_kind == CPU_KIND:
            cpus = [start.platform.node.device_cpus[device] for device in start.member.devices]
            if all(cpus):
                environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(_by_rank(cpus, start))
        return environment

    def health(self, entry: ModelEntry) -> Health:
        """Return `/health` and a one-token completion."""
        return completion_health(entry)


def serve_args(start: Start) -> tuple[str, ...]:
    """Return what Aegis itself decides: name, address, parallel sizes and the place among several nodes."""
    entry = start.entry
    args = [*option("--served-model-name", entry.name), "--host", start.bind, "--port", PORT]
    args += ["--tensor-parallel-size", str(entry.tensor_parallel_size)]
    if entry.pipeline_parallel_size > 1:
        args += ["--pipeline-parallel-size", str(entry.pipeline_parallel_size)]
    if entry.data_parallel_size > 1:
        args += ["--data-parallel-size", str(entry.data_parallel_size)]
    if start.members == 1 or uses_ray(start):
        return tuple(args)
    ranks_here = len(start.member.devices) // (entry.tensor_parallel_size * entry.pipeline_parallel_size)
    if entry.data_parallel_size > 1 and ranks_here:  # whole replicas on each node
        args += ["--data-parallel-size-local", str(ranks_here)]
        args += ["--data-parallel-address", start.master, "--data-parallel-rpc-port", start.master_port]
        if not start.is_head:
            args += ["--data-parallel-start-rank", str(start.member.rank * ranks_here)]
    else:  # one replica, or each of them, over several nodes
        args += ["--nnodes", str(start.members), "--node-rank", str(start.member.rank)]
        args += ["--master-addr", start.master, "--master-port", start.master_port]
        args += ["--distributed-executor-backend", "mp"]
        if entry.data_parallel_size > 1:
            rpc_port = start.instance.members[0].internal_port + MASTER_PORT_OFFSET + 1
            args += ["--data-parallel-size-local", "1"]
            args += ["--data-parallel-address", start.master, "--data-parallel-rpc-port", str(rpc_port)]
    if not start.is_head:
        args += ["--headless"]
    return tuple(args)


def _by_rank(cpus: list[str], start: Start) -> list[str]:
    """Return one CPU list per worker rank: cores are shared out evenly where there are more than ranks."""
    ranks = start.entry.devices // start.members
    share = max(1, len(cpus) // ranks)
    return [",".join(cpus[rank * share : (rank + 1) * share]) for rank in range(ranks)]
