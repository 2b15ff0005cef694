"""SGLang: `python3 -m sglang.launch_server`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.engines.base import (
    COMMON_CAUSES,
    PORT,
    Health,
    Start,
    completion_health,
    merge_args,
    option,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aegis.engines.base import Cause
    from aegis.spec.deployment import ModelEntry

DP_ATTENTION = "--enable-dp-attention"


class Sglang:
    """Servers of `sglang.launch_server`."""

    name = "sglang"
    program = "python3"
    causes: tuple[Cause, ...] = COMMON_CAUSES
    metrics: Mapping[str, tuple[str, ...]] = {
        "running": ("sglang:num_running_reqs",),
        "waiting": ("sglang:num_queue_reqs",),
        "swapped": (),
        "kv_cache": ("sglang:token_usage",),
        "cpu_cache": (),
        "prefix_hit_rate": ("sglang:cache_hit_rate",),
        "prefix_hits": ("sglang:cached_tokens_total",),
        "prefix_queries": ("sglang:prompt_tokens_total",),
        "prompt_tokens": ("sglang:prompt_tokens_total",),  # these two count a request when it is finished
        "generation_tokens": ("sglang:generation_tokens_total",),
        "prompt_progress": (
            "sglang:realtime_tokens_total{mode=prefill_compute|prefill_cache}",
            "sglang:prompt_tokens_total",
        ),
        "generation_progress": (
            "sglang:realtime_tokens_total{mode=decode}",
            "sglang:generation_tokens_total",
        ),
        "succeeded": ("sglang:num_requests_total",),
        "aborted": ("sglang:num_aborted_requests_total",),
        "first_token": ("sglang:time_to_first_token_seconds",),
        "token_to_token": (
            "sglang:inter_token_latency_seconds",
            "sglang:time_per_output_token_seconds",
        ),
        "whole_request": ("sglang:e2e_request_latency_seconds",),
        "queue_time": ("sglang:queue_time_seconds",),
    }
    reserved: Mapping[str, str | None] = {
        "--host": None,
        "--port": "port_start",
        "--served-model-name": "served_model_name",
        "--tp-size": "tensor_parallel_size",
        "--tp": "tensor_parallel_size",
        "--tensor-parallel-size": "tensor_parallel_size",
        "--pp-size": "pipeline_parallel_size",
        "--pipeline-parallel-size": "pipeline_parallel_size",
        "--dp-size": "data_parallel_size",
        "--dp": "data_parallel_size",
        "--data-parallel-size": "data_parallel_size",
    }

    def command(self, start: Start) -> tuple[str, ...]:
        """Return `python3 -m sglang.launch_server ...`."""
        entry = start.entry
        args = ["--model-path", start.weights, *option("--served-model-name", entry.name)]
        # attention data parallelism counts its ranks among those of tensor parallelism
        shared = entry.data_parallel_size if DP_ATTENTION in entry.extra_sglang_args else 1
        args += ["--host", start.bind, "--port", PORT, "--tp-size", str(entry.tensor_parallel_size * shared)]
        if entry.pipeline_parallel_size > 1:
            args += ["--pp-size", str(entry.pipeline_parallel_size)]
        if entry.data_parallel_size > 1:
            args += ["--dp-size", str(entry.data_parallel_size)]
        if start.members > 1:
            args += ["--nnodes", str(start.members), "--node-rank", str(start.member.rank)]
            # SGLang takes the next few ports too
            args += ["--dist-init-addr", f"{start.master}:{start.instance.members[0].internal_port}"]
        args += ["--enable-metrics"]
        defaults = start.platform.engine_args.get(self.name, ())
        return (
            start.executable,
            "-m",
            "sglang.launch_server",
            *args,
            *merge_args(defaults, entry.extra_sglang_args),
        )

    def environment(self, start: Start) -> dict[str, str]:
        """Return nothing beyond what the platform sets: the ports of SGLang are flags."""
        del start
        return {}

    def health(self, entry: ModelEntry) -> Health:
        """Return `/health` and a one-token completion."""
        return completion_health(entry)
