"""Arguments of vLLM and SGLang for the workers of a plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aegis.planner.emit.servers import Server

Flags: TypeAlias = dict[str, str | int | float | bool]  # without their dashes; True is a switch

# How an engine makes a checkpoint into another format while it loads it, by the planner's name of that format.
VLLM_FORMATS = {
    "fp8": "fp8",
    "fp8_ootb": "fp8",
    "fp8_block": "fp8_per_block",
    "int8_wo": "int8_per_channel_weight_only",
}
SGLANG_FORMATS = {"fp8": "fp8", "fp8_ootb": "fp8"}
VLLM_KV = {"fp8": "fp8"}
SGLANG_KV = {"fp8": "fp8_e4m3"}
SIZES = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")  # Aegis has keys for them


def vllm_flags(server: Server) -> Flags:
    """Return the engine arguments of `vllm serve`, without model, address and place among nodes."""
    split = server.split
    flags: Flags = {"tensor-parallel-size": split.tp, "pipeline-parallel-size": split.pp}
    if split.dp > 1:
        flags["data-parallel-size"] = split.dp
    if split.moe_ep > 1:
        flags["enable-expert-parallel"] = True
    if server.requantize in VLLM_FORMATS:
        flags["quantization"] = VLLM_FORMATS[server.requantize]
    if server.kv_cache in VLLM_KV:
        flags["kv-cache-dtype"] = VLLM_KV[server.kv_cache]
    flags["max-model-len"] = server.max_length
    flags["max-num-seqs"] = server.max_requests
    flags["max-num-batched-tokens"] = server.step_tokens
    if server.memory_fraction:
        flags["gpu-memory-utilization"] = server.memory_fraction
    if server.cached_prefix:
        flags["enable-prefix-caching"] = True
    if server.drafted:
        speculation = {"method": "mtp", "num_speculative_tokens": server.drafted}
        flags["speculative-config"] = json.dumps(speculation)
    if server.role != "agg":
        flags["kv-transfer-config"] = json.dumps({"kv_connector": "NixlConnector", "kv_role": "kv_both"})
    return flags


def sglang_flags(server: Server) -> Flags:
    """Return the engine arguments of `sglang.launch_server`, without model, address and place among nodes."""
    split = server.split
    # tensor and attention data parallelism share the GPUs, and the limit of requests is that of the whole server
    flags: Flags = {
        "tensor-parallel-size": split.tp * split.dp * split.cp,
        "pipeline-parallel-size": split.pp,
    }
    if split.cp > 1:
        flags["attention-context-parallel-size"] = split.cp
    if split.dp > 1:
        flags |= {"data-parallel-size": split.dp, "enable-dp-attention": True}
    if split.moe_ep > 1:
        flags["expert-parallel-size"] = split.moe_ep
    if server.requantize in SGLANG_FORMATS:
        flags["quantization"] = SGLANG_FORMATS[server.requantize]
    if server.kv_cache in SGLANG_KV:
        flags["kv-cache-dtype"] = SGLANG_KV[server.kv_cache]
    flags |= {"context-length": server.max_length, "max-running-requests": server.max_requests * split.dp}
    flags |= _sglang_steps(server)
    if server.memory_fraction:
        flags["mem-fraction-static"] = server.memory_fraction
    if server.drafted:
        # the three numbers go together: a chain of drafts, each step verified at once
        flags |= {
            "speculative-algorithm": "NEXTN",
            "speculative-num-steps": server.drafted,
            "speculative-eagle-topk": 1,
            "speculative-num-draft-tokens": server.drafted + 1,
        }
    return flags


def _sglang_steps(server: Server) -> Flags:
    """Return what depends on the kind of steps that the server takes."""
    flags: Flags = {}
    if server.role != "decode":
        flags["chunked-prefill-size"] = server.context_tokens * server.split.dp
        flags["max-prefill-tokens"] = max(server.context_tokens, server.max_length)
    if server.role == "agg":
        flags["enable-mixed-chunk"] = True
    else:
        flags |= {"disaggregation-mode": server.role, "disaggregation-transfer-backend": "nixl"}
    return flags


def arguments(flags: Mapping[str, str | float | bool], *, without: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the flags as words of a command line."""
    words: list[str] = []
    for name, value in flags.items():
        if name not in set(without):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return tuple(words)


def unmet(server: Server, engine: str) -> list[str]:
    """Return, in words, what of the plan the engine cannot be told by its arguments."""
    formats, kv = (VLLM_FORMATS, VLLM_KV) if engine == "vllm" else (SGLANG_FORMATS, SGLANG_KV)
    found = []
    if server.requantize and server.requantize == "bfloat16":
        found.append("the plan counts with bfloat16 weights; the checkpoint is quantized and stays so")
    elif server.requantize and server.requantize not in formats:
        found.append(
            f"the plan counts with {server.requantize} weights: give `model` a checkpoint in that format, "
            f"{engine} does not make one while it loads"
        )
    if server.kv_cache != "bfloat16" and server.kv_cache not in kv:
        found.append(
            f"{engine} has no {server.kv_cache} KV cache: it stays bfloat16 and takes twice the memory"
        )
    return found
