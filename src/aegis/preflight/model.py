"""Parallel sizes and context length against what the model's config.json says. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from aegis.engines.base import merge_args
from aegis.errors import Problem
from aegis.preflight.finding import Finding, place_of, quantity
from aegis.preflight.flags import Flags

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aegis.preflight.shape import Shape
    from aegis.spec.deployment import ModelEntry
    from aegis.spec.resolve import Resolved

# With these the engine serves another model than its config.json says.
OVERRIDES = (
    *("--hf-overrides", "--hf-config-path", "--config", "--rope-scaling"),
    *("--json-model-override-args", "--decrypted-config-file"),
)
LONGER = {  # per engine: the flag of the context length, and the variable by which it may be longer than the model's
    "vllm": ("--max-model-len", "VLLM_ALLOW_LONG_MAX_MODEL_LEN"),
    "sglang": ("--context-length", "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"),
}
TRUE = ("1", "true", "yes", "on")


class Wish(Struct, frozen=True):
    """One model entry, with its flags, as the checks see it."""

    resolved: Resolved
    index: int
    flags: Flags
    environ: Mapping[str, str]  # as the server will see it

    @classmethod
    def of(cls, resolved: Resolved, index: int, environ: Mapping[str, str]) -> Wish:
        """Return an entry of a deployment; `environ` is that of the user."""
        entry, platform = resolved.deployment.models[index], resolved.platform
        flags = Flags(merge_args(platform.engine_args.get(entry.engine, ()), entry.extra_args))
        return cls(resolved, index, flags, {**environ, **platform.env, **entry.env})

    @property
    def entry(self) -> ModelEntry:
        """The model entry."""
        return self.resolved.deployment.models[self.index]

    def where(self, *keys: str) -> str:
        """Return where the first of these keys of the entry, or else its model, came from."""
        return place_of(self.resolved, *(f"models[{self.index}].{key}" for key in (*keys, "model")))

    def is_set(self, variable: str) -> bool:
        """Tell whether a switch of the environment is on."""
        return self.environ.get(variable, "").lower() in TRUE


def splits(shape: Shape, tensor: int) -> bool:
    """Tell whether attention can be split over so many devices.

    Query heads are dealt out evenly (vLLM 0.32: vllm/config/model.py, `verify_with_parallel_config`). KV heads too, or
    each is copied to the same number of devices (vllm/model_executor/layers/linear.py, `QKVParallelLinear`). SGLang
    asserts the same in its models (python/sglang/srt/models/llama.py).
    """
    heads, kv_heads = shape.heads or tensor, shape.kv_heads or tensor
    return heads % tensor == 0 and (kv_heads % tensor == 0 or tensor % kv_heads == 0)


def model(wish: Wish, shape: Shape) -> Iterator[Finding]:
    """Yield what the engine would refuse of a model of this shape."""
    if wish.entry.engine == "sim" or wish.flags.has(*OVERRIDES):
        return
    yield from _heads(wish, shape)
    yield from _layers(wish, shape)
    yield from _experts(wish, shape)
    yield from _context(wish, shape)


def _heads(wish: Wish, shape: Shape) -> Iterator[Finding]:
    entry, tensor = wish.entry, wish.entry.tensor_parallel_size
    if splits(shape, tensor) or wish.flags.on("--enable-dp-attention"):  # SGLang then splits by fewer
        return
    heads = shape.heads or tensor
    query = heads % tensor != 0
    count, kind = (heads, "attention heads") if query else (shape.kv_heads, "KV heads")
    said = f"the {count} {kind} of {entry.name} cannot be split over {tensor} devices"
    near = [size for size in range(1, heads + 1) if splits(shape, size)]
    fitting = [*[size for size in near if size < tensor][-1:], *[size for size in near if size > tensor][:1]]
    hint = f"use a tensor_parallel_size of {' or '.join(map(str, fitting))}" if fitting else None
    problem = Problem(wish.where("tensor_parallel_size"), said, hint)
    yield Finding(problem, certain=query and entry.engine == "vllm")


def _layers(wish: Wish, shape: Shape) -> Iterator[Finding]:
    stages = wish.entry.pipeline_parallel_size
    if shape.layers and shape.layers < stages:
        layers = quantity(shape.layers, "layer")
        said = f"the {layers} of {wish.entry.name} cannot be split into {stages} pipeline stages"
        hint = f"use a pipeline_parallel_size of at most {shape.layers}"
        yield Finding(Problem(wish.where("pipeline_parallel_size"), said, hint), certain=False)


def _experts(wish: Wish, shape: Shape) -> Iterator[Finding]:
    """Yield what expert parallelism asks for.

    vLLM deals experts out unevenly, unless it balances them (vllm/model_executor/layers/fused_moe); SGLang asserts that
    each device gets the same number (python/sglang/srt/layers/moe).
    """
    entry, flags = wish.entry, wish.flags
    check = {"vllm": _vllm_experts, "sglang": _sglang_experts}[entry.engine]
    if said := check(entry, flags, shape):
        yield Finding(Problem(wish.where(f"extra_{entry.engine}_args"), *said), certain=False)


def _vllm_experts(entry: ModelEntry, flags: Flags, shape: Shape) -> tuple[str, str] | None:
    if not flags.on("--enable-expert-parallel", "-ep"):
        return None
    if not shape.experts:
        return f"{entry.name} has no experts for --enable-expert-parallel", "leave the flag out"
    devices = entry.tensor_parallel_size * entry.data_parallel_size
    if flags.on("--enable-eplb") and not flags.has("--eplb-config") and shape.experts % devices:
        said = f"--enable-eplb needs the same number of experts on each device, and {shape.experts} experts of {entry.name}"
        return (
            f"{said} are for {devices} devices",
            "leave the flag out, or give --eplb-config redundant experts",
        )
    return None


def _sglang_experts(entry: ModelEntry, flags: Flags, shape: Shape) -> tuple[str, str] | None:
    given = (flags.amount(name) for name in ("--ep-size", "--ep", "--expert-parallel-size"))
    size = next(filter(None, given), 0)
    if size <= 1 or flags.has("--ep-num-redundant-experts"):
        return None
    if not shape.experts or shape.experts % size:
        said = f"the {shape.experts} experts of {entry.name} cannot be dealt out evenly to {size} devices"
        return said, "choose an --ep-size that divides them"
    return None


def _context(wish: Wish, shape: Shape) -> Iterator[Finding]:
    flag, variable = LONGER[wish.entry.engine]
    asked = wish.flags.amount(flag)
    if not asked or not shape.context or asked <= shape.context * shape.scaling or wish.is_set(variable):
        return
    most = int(shape.context * shape.scaling)
    said = f"{flag} {asked} is more than the {most} tokens that {wish.entry.name} was made for"
    hint = f"use at most {most}, or set {variable}=1 in `env`"
    yield Finding(Problem(wish.where(f"extra_{wish.entry.engine}_args"), said, hint), certain=False)
