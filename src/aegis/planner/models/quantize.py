"""Which number formats a model runs in, unless said: by the GPU (the guide's rules), or by its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from aegis.planner.models.shapes import LATENT_FAMILIES
from aegis.planner.problem import Quantization
from aegis.planner.tables.slices import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.answer import Role
    from aegis.planner.estimator import Rules
    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.problem import Backend
    from aegis.planner.systems import System
    from aegis.planner.tables.slices import Tables

BLACKWELL, ADA = 100, 89  # sm versions: the first with fp4, the first with fp8
# The guide's rules run these on fp8 with one scale a tensor; all others with one a block.
PER_TENSOR = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM", "MixtralForCausalLM"})
# Checkpoints whose activations are narrow too: attention follows.
NARROW = frozenset({"fp8", "fp8_block", "nvfp4"})
NARROW_EXPERTS_ONLY = "w4afp8"  # no dense weights are stored so


class Has(Protocol):
    """Tells whether tables measure an operation with these keys, by column: has("gemm", quant="fp8")."""

    def __call__(self, operation: str, /, **columns: str) -> bool: ...


def has_in(tables: Tables) -> Has:
    """Return what asks the index of these tables."""

    def has(operation: str, /, **columns: str) -> bool:
        layout = LAYOUTS.get(operation)
        if layout is None or any(column not in layout.key for column in columns):
            return False
        wanted = {layout.key.index(column): value for column, value in columns.items()}
        return any(all(key[at] == value for at, value in wanted.items()) for key in tables.keys(operation))

    return has


def explain_quantization(
    model: ModelShape,
    *,
    system: System,
    backend: Backend,
    rules: Rules = "current",
    has: Has | None = None,
    role: Role = "agg",
    prefer: str | None = None,
    open_formats: bool = False,
) -> tuple[Quantization, tuple[str, ...]]:
    """Return the formats that a model runs in on a system, and notes of what was chosen instead of the expected.

    Args:
        model: its shape and how its checkpoint is stored.
        system: the guide's rules choose by its sm version.
        backend: the engine.
        rules: "guide" or "current" (planner.estimator).
        has: asks the tables; None: nothing is known of them.
        role: decode workers have no context attention to find tables for.
        prefer: a format that the user wants for all weights (the guide's rules: experts alone where it is w4afp8).
        open_formats: the name stands for no checkpoint (the guide's names): the GPU decides, as in the guide.
    """
    if rules == "guide":
        return _by_gpu(model, system.sm_version, prefer), ()
    notes: list[str] = []
    if open_formats and model.checkpoint.algorithm is None:
        chosen = _by_measured_gpu(model, system, has)
        if chosen.gemm != "bfloat16":
            notes.append(
                f"weights in {chosen.gemm}, as the guide takes them; a Hugging Face id takes its checkpoint's format"
            )
    else:
        chosen = _by_checkpoint(model, system, backend)
    if prefer is not None:
        chosen = _prefer(chosen, prefer)
    if role != "decode" and chosen.fmha == "fp8":
        why = _why_wide_attention(model, backend, chosen.kv_cache, has)
        if why is not None:
            chosen = _replace(chosen, fmha="bfloat16")
            notes.append(why)
    return chosen, tuple(notes)


def _by_gpu(model: ModelShape, sm_version: int, prefer: str | None) -> Quantization:
    if sm_version >= BLACKWELL:
        weights, cache = "nvfp4", "fp8"
    elif sm_version >= ADA:
        weights, cache = "fp8" if model.architecture in PER_TENSOR else "fp8_block", "fp8"
    else:
        weights, cache = "bfloat16", "bfloat16"
    fmha = "bfloat16" if model.family in LATENT_FAMILIES else cache
    chosen = Quantization(gemm=weights, moe=weights, kv_cache=cache, fmha=fmha)
    return chosen if prefer is None else _prefer(chosen, prefer)


def _by_measured_gpu(model: ModelShape, system: System, has: Has | None) -> Quantization:
    """Return the guide's formats of the newest GPU generation, up to this one, whose formats are in the tables."""
    for sm_version in (system.sm_version, BLACKWELL - 1, 0):
        chosen = _by_gpu(model, min(sm_version, system.sm_version), None)
        measured = has is None or (
            has("gemm", quant=chosen.gemm) and (not model.has_experts or has("moe", quant=chosen.moe))
        )
        if measured:
            break
    return chosen


def _by_checkpoint(model: ModelShape, system: System, backend: Backend) -> Quantization:
    stored = model.checkpoint
    blackwell = system.sm_version >= BLACKWELL
    moe = stored.moe
    if (
        model.architecture == "GptOssForCausalLM"
        and moe == "w4a16_mxfp4"
        and backend == "trtllm"
        and blackwell
    ):
        moe = "w4a8_mxfp4_mxfp8"
    if backend == "vllm" and model.architecture == "NemotronHForCausalLM" and moe == "w4a16_nvfp4":
        moe = "nvfp4"  # the kernels that vLLM runs quantize activations whatever the checkpoint says
    gemm, moe = (each if blackwell or each != "nvfp4" else "nvfp4_wo" for each in (stored.gemm, moe))
    narrow = stored.algorithm in NARROW or (stored.algorithm is not None and stored.kv_cache == "fp8")
    return Quantization(
        gemm=gemm,
        moe=moe,
        kv_cache="fp8" if narrow else stored.kv_cache or "bfloat16",
        fmha="fp8" if narrow else "bfloat16",
    )


def _prefer(chosen: Quantization, weights: str) -> Quantization:
    gemm = chosen.gemm if weights == NARROW_EXPERTS_ONLY else weights
    return _replace(chosen, gemm=gemm, moe=weights)


def _replace(
    chosen: Quantization, *, gemm: str | None = None, moe: str | None = None, fmha: str | None = None
) -> Quantization:
    return Quantization(
        gemm=gemm or chosen.gemm,
        moe=moe or chosen.moe,
        kv_cache=chosen.kv_cache,
        fmha=fmha or chosen.fmha,
        comm=chosen.comm,
    )


def _why_wide_attention(model: ModelShape, backend: Backend, cache: str, has: Has | None) -> str | None:
    """Return why attention is computed in bfloat16 though the checkpoint would let it be fp8, or None if it is fp8."""
    if backend == "vllm":
        return "vLLM computes prefill attention in bfloat16, also for fp8 checkpoints"
    tables = _attention_tables(model)
    if has is None or not any(has(each) for each in tables):
        if model.family == "DEEPSEEKV32":
            return "sparse attention was measured in bfloat16 only"
        return None
    if any(has(each, fmha="fp8", kv_cache=cache) for each in tables):
        return None
    if not any(has(each, fmha="bfloat16", kv_cache=cache) for each in tables):
        return None
    return (
        f"no table of {' or '.join(tables)} is in fp8 with a KV cache in {cache}: attention is taken in bfloat16, "
        "which is slower if the engine does compute in fp8"
    )


def _attention_tables(model: ModelShape) -> Sequence[str]:
    if model.family == "DEEPSEEKV32":
        return ("dsa_context_module",)
    return ("context_mla", "mla_context_module") if model.latent else ("context_attention",)
