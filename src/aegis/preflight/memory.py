"""Whether weights, and the KV cache of one request, fit into the devices.

What engines need besides (activations, graphs, communication) is left out, so what is refused here does not fit for sure,
if the platform tells its devices' memory right.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from aegis.errors import Problem
from aegis.preflight.finding import Finding
from aegis.preflight.model import OVERRIDES, splits
from aegis.preflight.weights import FLOAT32, loaded_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.preflight.model import Wish
    from aegis.preflight.shape import Shape
    from aegis.preflight.weights import Weights

GIB = 1024**3
MOST_DEVICES = 64  # of one stage, where the heads of a model are not known
# The share of a device that an engine takes: vLLM 0.32 (0.9 in older ones); SGLang works it out, and comes to less.
SHARES = {"vllm": ("--gpu-memory-utilization", 0.92), "sglang": ("--mem-fraction-static", 0.9)}
# Flags with which the weights are not what lies in the files, or not all on the devices.
ELSEWHERE = (
    *("--quantization", "-q", "--load-format", "--torchao-config", "--modelopt-quant"),
    *("--cpu-offload-gb", "--offload-backend", "--offload-group-size", "--enable-weights-cpu-backup"),
)
# Flags with which one request does not need the whole cache of its tokens on each device.
OTHER_CACHE = (
    *("--decode-context-parallel-size", "-dcp", "--prefill-context-parallel-size", "-pcp"),
    *("--num-gpu-blocks-override", "--runner", "--task", "--convert", "--kv-transfer-config"),
)
CONSTRAINT = re.compile(r"-C|--constraint")  # a directive that may choose other devices than the usual ones


class Room(NamedTuple):
    """The memory of a device, in bytes."""

    total: float
    usable: float  # by the engine
    limit: str  # what says so
    cache: float | None = None  # of the KV cache, where it was given


def memory(wish: Wish, shape: Shape | None, weights: Weights) -> Iterator[Finding]:
    """Yield what does not fit."""
    room = _room(wish)
    if room is None or wish.flags.has(*OVERRIDES, *ELSEWHERE):
        return
    size = loaded_size(weights, shape, wish.flags.text("--dtype"))
    if size is None:
        return
    if size / _parts(wish, shape) > room.usable:
        yield _too_heavy(wish, shape, size, room)
    elif shape and wish.entry.engine == "vllm":
        yield from _cache(wish, shape, size, room)


def _room(wish: Wish) -> Room | None:
    """Return the memory of the devices that the job will get, if it is known."""
    deployment, platform = wish.resolved.deployment, wish.resolved.platform
    constraint = deployment.constraint or any(map(CONSTRAINT.match, deployment.directives))
    others = constraint or deployment.resource_type not in (None, platform.gpu_type)
    if not platform.node.device_memory_gib or others or wish.entry.engine not in SHARES:
        return None
    total = platform.node.device_memory_gib * GIB
    cache = wish.flags.amount("--kv-cache-memory-bytes")
    if cache and wish.entry.engine == "vllm":  # it goes before the share
        return Room(total, total, "all of it", cache)
    flag, usual = SHARES[wish.entry.engine]
    share = min(wish.flags.number(flag) or usual, 1.0)
    return Room(total, total * share, f"{flag} {share:g}")


def _parts(wish: Wish, shape: Shape | None, tensor: int | None = None) -> int:
    """Return into how many parts the weights are split, at most.

    Replicas of data parallelism hold all weights, but for experts: vLLM splits those over the replicas too
    (vllm/model_executor/layers/fused_moe/config.py, `flatten_tp_across_dp_and_pcp`).
    """
    entry = wish.entry
    parts = (tensor or entry.tensor_parallel_size) * entry.pipeline_parallel_size
    if entry.engine == "vllm" and (shape is None or shape.experts):
        parts *= entry.data_parallel_size
    return parts


def _too_heavy(wish: Wish, shape: Shape | None, size: float, room: Room) -> Finding:
    entry, kind = wish.entry, wish.resolved.platform.node.device_kind
    parts = _parts(wish, shape)
    split = f" over {parts} devices are {_gib(size / parts)} each, and" if parts > 1 else " do not fit:"
    said = f"the {_gib(size)} of weights of {entry.name}{split} a {kind} of {_gib(room.total)} gives {_gib(room.usable)} ({room.limit})"
    sizes = _sizes(shape, entry.tensor_parallel_size)
    fitting = next((each for each in sizes if size / _parts(wish, shape, each) <= room.usable), None)
    if fitting:
        hint = f"a tensor_parallel_size of {fitting} holds them"
    else:
        stages = -(-size // (room.usable * entry.tensor_parallel_size))
        hint = f"tensor_parallel_size x pipeline_parallel_size has to be at least {stages * entry.tensor_parallel_size:g}"
    return Finding(Problem(wish.where("tensor_parallel_size"), said, hint), certain=False)


def _sizes(shape: Shape | None, tensor: int) -> list[int]:
    """Return the larger numbers of devices over which the model can be split."""
    if shape and shape.heads:
        return [size for size in range(tensor + 1, shape.heads + 1) if splits(shape, size)]
    return [2**power for power in range(MOST_DEVICES.bit_length()) if 2**power > tensor]


def _cache(wish: Wish, shape: Shape, size: float, room: Room) -> Iterator[Finding]:
    """Yield that not even one request of full length fits, which vLLM refuses (`_check_enough_kv_cache_memory`)."""
    flag = wish.flags.text("--max-model-len")
    length = wish.flags.amount("--max-model-len") if flag else shape.context
    token = _bytes_of_token(wish, shape)
    if not length or not token or wish.flags.has(*OTHER_CACHE):
        return
    weights = size / _parts(wish, shape)
    left = room.usable - weights if room.cache is None else room.cache
    if token * length <= left:
        return
    asked = f"--max-model-len {length}" if flag else f"the {length} tokens of its full context"
    limit = f"{_gib(weights)} of weights leave {_gib(left)} of {_gib(room.usable)} ({room.limit})"
    if room.cache is not None:
        limit = f"--kv-cache-memory-bytes gives {_gib(left)}"
    said = f"one request of {wish.entry.name} ({asked}) needs {_gib(token * length)} of KV cache on each device, and {limit}"
    fitting = int(left / token) // 1024 * 1024
    ways = [f"--max-model-len {fitting}"] if fitting else []
    for tensor in _sizes(shape, wish.entry.tensor_parallel_size) if room.cache is None else ():
        if _bytes_of_token(wish, shape, tensor) * length <= room.usable - size / _parts(wish, shape, tensor):
            ways.append(f"a tensor_parallel_size of {tensor}")
            break
    hint = f"{' or '.join(ways)} would fit" if ways else None
    yield Finding(Problem(wish.where("extra_vllm_args"), said, hint), certain=False)


def _bytes_of_token(wish: Wish, shape: Shape, tensor: int | None = None) -> float:
    """Return the bytes of KV cache of one token on each device; 0: not known.

    Keys and values of every layer of the stage and every KV head of the device, which holds one at least; a latent of
    all heads (MLA) is on every device (vllm/v1/kv_cache_interface.py).
    """
    if not (shape.uniform and shape.layers and shape.kv_values):
        return 0
    heads = 1.0
    if not shape.latent:
        heads = max(1.0, (shape.kv_heads or 1) / (tensor or wish.entry.tensor_parallel_size))
    return shape.kv_values * _width(wish, shape) * heads * shape.layers / wish.entry.pipeline_parallel_size


def _width(wish: Wish, shape: Shape) -> int:
    """Return the bytes of one value in the KV cache; 0: not known."""
    kind = wish.flags.text("--kv-cache-dtype") or "auto"
    if kind.startswith(("fp8", "int8")) or (kind == "auto" and shape.small_cache):
        return 1
    if kind == "auto":
        return 4 if wish.flags.text("--dtype") in FLOAT32 else 2
    return {"bfloat16": 2, "float16": 2}.get(kind, 0)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
