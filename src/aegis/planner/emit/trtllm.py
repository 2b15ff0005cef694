"""TensorRT-LLM: the file for `--extra-engine-args` (`--extra_llm_api_options` of trtllm-serve).

Which keys it has depends on the version; boundaries as in the files that aiconfigurator 0.3.0 and 0.12.0 write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import UNSET, Struct, UnsetType, to_builtins
from msgspec.structs import asdict

from aegis.errors import ConfigError
from aegis.planner.emit.servers import BLOCK, HEADROOM
from aegis.planner.tables.versions import version_order

if TYPE_CHECKING:
    from aegis.planner.emit.servers import Server

NEWEST = "1.3.0rc23"  # the files of versions that are not known have its form
MEMORY_FRACTION = 0.9  # of what is left for the KV cache: the engine's default, and what plans count with
_GRAPHS = "1.0.0rc3"  # CUDA graphs, and the limits, move into sections of their own
_KV_FORMAT = "1.0.0rc4"  # the KV cache's format moves into its section; section of the transceiver
_FLAT = "1.2.0rc5"  # the limits move back to the top
_UPPER = "1.1.0rc1"  # the transceiver's backend is written in capitals


class Limits(Struct, frozen=True):
    """Sizes of a step."""

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int


class KvCache(Struct, frozen=True, omit_defaults=True):
    """Section kv_cache_config."""

    enable_block_reuse: bool
    free_gpu_memory_fraction: float
    tokens_per_block: int
    dtype: str | UnsetType = UNSET


class Transceiver(Struct, frozen=True):
    """Section cache_transceiver_config: how KV caches travel between workers."""

    backend: str
    max_tokens_in_buffer: int


class Graphs(Struct, frozen=True):
    """Section cuda_graph_config."""

    enable_padding: bool
    batch_sizes: list[int]


class Experts(Struct, frozen=True):
    """Section moe_config."""

    backend: str = "CUTLASS"


class Speculation(Struct, frozen=True):
    """Section speculative_config."""

    decoding_type: str
    num_nextn_predict_layers: int


class EngineConfig(Struct, frozen=True, kw_only=True):
    """The file, in the order of its keys; UNSET: a key that the version does not know."""

    backend: str = "pytorch"
    tensor_parallel_size: int
    pipeline_parallel_size: int
    moe_tensor_parallel_size: int | UnsetType = UNSET
    moe_expert_parallel_size: int | UnsetType = UNSET
    moe_config: Experts | UnsetType = UNSET
    enable_attention_dp: bool
    enable_chunked_prefill: bool
    build_config: Limits | UnsetType = UNSET
    max_batch_size: int | UnsetType = UNSET
    max_num_tokens: int | UnsetType = UNSET
    max_seq_len: int | UnsetType = UNSET
    kv_cache_config: KvCache
    kv_cache_dtype: str | UnsetType = UNSET
    cache_transceiver_config: Transceiver | UnsetType = UNSET
    cuda_graph_config: Graphs | UnsetType = UNSET
    disable_overlap_scheduler: bool | UnsetType = UNSET
    print_iter_log: bool | UnsetType = UNSET
    speculative_config: Speculation | UnsetType = UNSET


def engine_config(server: Server, version: str = NEWEST) -> dict[str, Any]:
    """Return the mapping that a version of TensorRT-LLM reads.

    Raises:
        ConfigError: `version` does not look like one.
    """
    if not version_order(version)[0]:
        raise ConfigError(f"`{version}` is no version of TensorRT-LLM", hint="such as 1.0.0rc6")
    sections, kv_section = at_least(version, _GRAPHS), at_least(version, _KV_FORMAT)
    dtype = "auto" if server.kv_cache == "bfloat16" else server.kv_cache
    room = HEADROOM if server.whole_prompts and server.role == "agg" else 0
    limits = Limits(server.max_requests, server.step_tokens + room, server.max_length)
    nested = sections and not at_least(version, _FLAT)
    config = EngineConfig(
        # attention data parallelism reuses the GPUs of tensor parallelism
        tensor_parallel_size=server.split.tp * server.split.dp,
        pipeline_parallel_size=server.split.pp,
        moe_tensor_parallel_size=server.split.moe_tp if server.experts else UNSET,
        moe_expert_parallel_size=server.split.moe_ep if server.experts else UNSET,
        moe_config=Experts() if server.experts and kv_section else UNSET,
        enable_attention_dp=server.split.dp > 1,
        enable_chunked_prefill=not server.whole_prompts and server.role != "decode",
        build_config=limits if nested else UNSET,
        **({} if nested else asdict(limits)),
        kv_cache_config=KvCache(
            server.cached_prefix > 0,
            server.memory_fraction or MEMORY_FRACTION,
            BLOCK,
            dtype if kv_section else UNSET,
        ),
        kv_cache_dtype=dtype if sections and not kv_section else UNSET,
        cache_transceiver_config=_transceiver(server, version)
        if server.transfer_tokens and kv_section
        else UNSET,
        cuda_graph_config=Graphs(True, list(graph_sizes(server.max_requests))) if sections else UNSET,
        disable_overlap_scheduler=server.role == "prefill" if sections else UNSET,
        print_iter_log=False if sections else UNSET,
        speculative_config=Speculation("MTP", server.drafted) if server.drafted else UNSET,
    )
    return dict(to_builtins(config))


def _transceiver(server: Server, version: str) -> Transceiver:
    return Transceiver("DEFAULT" if at_least(version, _UPPER) else "default", server.transfer_tokens)


def at_least(version: str, oldest: str) -> bool:
    """Tell whether a version is as new as another."""
    return version_order(version) >= version_order(oldest)


def graph_sizes(largest: int) -> tuple[int, ...]:
    """Return the batch sizes that graphs are captured for: all small ones, then ever fewer, and the largest."""
    steps = ((1, 16, 1), (16, 32, 4), (32, 64, 8), (64, 128, 16), (128, 256, 32), (256, 1 << 20, 64))
    sizes = {
        size
        for low, high, step in steps
        if low <= largest
        for size in range(low, min(high, largest) + 1, step)
    }
    return tuple(sorted(sizes | {largest}))
