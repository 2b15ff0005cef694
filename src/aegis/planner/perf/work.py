"""How much an operation has to do on a system, and what its efficiency depends on: what efficiency curves are entered with.

Formulas: what is computed (2 operations for each product and sum) over the peak rate, and what is moved over the
bandwidth. Both for the fit (arrays of measured shapes) and for estimates (one shape, arrays of batches).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from aegis.planner.models.formats import bytes_of, flops_of

if TYPE_CHECKING:
    from aegis.planner.operations import Floats, Ints
    from aegis.planner.systems import System

    Dimension: TypeAlias = int | float | Ints | Floats

_FP8_SM = 89  # the first compute capability with fp8 tensor cores
_MS = 1000.0
_SMALL = 0.01  # ms of work under which a GPU does not get going
_TILE = 128  # rows and columns that one block of threads computes
_BLOCKS = 264  # blocks that fill a large GPU twice
FAST_LINK = 1e11  # bytes/s: NVLink and its like above, PCIe below


class Work(NamedTuple):
    """Times at the limits of the hardware (ms), and dimensionless features of the shape and of the machine."""

    compute: Floats
    memory: Floats  # or the link, of a collective
    shape: tuple[Floats, ...]
    machine: tuple[Floats, ...]  # these move the fixed overhead too


def gemm(system: System, quant: str, m: Dimension, n: Dimension, k: Dimension) -> Work:
    """Return the work of (m, k) x (k, n): weights in `quant`, activations in bfloat16."""
    m, n, k = _floats(m, n, k)
    rate = flops_of(quant, system)
    compute = _MS * 2 * m * n * k / rate
    memory = _MS * (bytes_of(quant) * n * k + 2 * m * (k + n)) / system.memory_bandwidth
    shape = (
        np.log1p(_TILE / m),
        _small(compute, memory),
        np.log1p(1024 / n),
        np.log1p(1024 / k),
        np.log1p(rate / system.memory_bandwidth / m),
    )
    return Work(compute, memory, shape, _machine(system, rate))


class Heads(NamedTuple):
    """Attention of one GPU."""

    heads: Dimension
    kv_heads: Dimension
    size: Dimension
    window: Dimension = 0


def context_attention(
    system: System, formats: tuple[str, str], at: Heads, batch: Dimension, length: Dimension
) -> Work:
    """Return the work of causal attention of `length` tokens to themselves; `formats`: of the products, of the cache."""
    heads, kv_heads, size, window = _floats(*at)
    batch, length = _floats(batch, length)
    fmha, kv_cache = formats
    rate = flops_of(fmha, system)
    pairs = np.where((window > 0) & (length > window), length * window, length * length / 2)
    compute = _MS * 4 * batch * heads * size * pairs / rate
    moved = batch * length * size * (4 * heads + 2 * kv_heads * bytes_of(kv_cache))
    memory = _MS * moved / system.memory_bandwidth
    shape = (
        np.log1p(_TILE / length),
        _small(compute, memory),
        np.log1p(_BLOCKS * _TILE / (batch * heads * length)),
        np.log(size / 128),
        np.log(heads / kv_heads),
        np.where((window > 0) & (length > window), 1.0, 0.0),
    )
    return Work(compute, memory, shape, _machine(system, rate))


def generation_attention(
    system: System, kv_cache: str, at: Heads, batch: Dimension, length: Dimension
) -> Work:
    """Return the work of attention of one token of each sequence to `length` tokens."""
    heads, kv_heads, size, window = _floats(*at)
    batch, length = _floats(batch, length)
    rate = flops_of(kv_cache if _computes_fp8(system, kv_cache) else "bfloat16", system)
    seen = np.where(window > 0, np.minimum(length, window), length)
    compute = _MS * 4 * batch * heads * size * seen / rate
    moved = batch * size * (4 * heads + 2 * kv_heads * seen * bytes_of(kv_cache))
    memory = _MS * moved / system.memory_bandwidth
    shape = (
        _small(compute, memory),
        np.log1p(_BLOCKS / (batch * kv_heads)),
        np.log1p(_BLOCKS * 256 / (batch * kv_heads * seen)),
        np.log(size / 128),
        np.log(heads / kv_heads),
    )
    return Work(compute, memory, shape, _machine(system, rate))


def context_mla(
    system: System, formats: tuple[str, str], heads: Dimension, batch: Dimension, length: Dimension
) -> Work:
    """Return the work of latent attention of `length` tokens to themselves: 192 wide products, 128 wide values."""
    heads, batch, length = _floats(heads, batch, length)
    fmha, kv_cache = formats
    rate = flops_of(fmha, system)
    compute = _MS * batch * heads * 320 * length * length / rate
    memory = _MS * batch * heads * length * 320 * (bytes_of(kv_cache) + 2) / system.memory_bandwidth
    shape = (
        np.log1p(_TILE / length),
        _small(compute, memory),
        np.log1p(_BLOCKS * _TILE / (batch * heads * length)),
    )
    return Work(compute, memory, shape, _machine(system, rate))


def generation_mla(
    system: System, kv_cache: str, heads: Dimension, batch: Dimension, length: Dimension
) -> Work:
    """Return the work of latent attention of one token of each sequence: a cache of 576 for all heads."""
    heads, batch, length = _floats(heads, batch, length)
    rate = flops_of(kv_cache if _computes_fp8(system, kv_cache) else "bfloat16", system)
    compute = _MS * 2 * batch * heads * 1088 * length / rate
    moved = batch * (heads * 1088 * 2 + length * 576 * bytes_of(kv_cache))
    memory = _MS * moved / system.memory_bandwidth
    shape = (
        _small(compute, memory),
        np.log1p(_BLOCKS / batch),
        np.log1p(_BLOCKS * 256 / (batch * length)),
        np.log1p(64 / heads),
    )
    return Work(compute, memory, shape, _machine(system, rate))


def mla_bmm(system: System, quant: str, heads: Dimension, tokens: Dimension) -> Work:
    """Return the work of the product into or out of the latent space: 128 to 512 for each head."""
    heads, tokens = _floats(heads, tokens)
    rate = flops_of(quant, system)
    compute = _MS * 2 * tokens * heads * 128 * 512 / rate
    moved = heads * (128 * 512 * bytes_of(quant) + 2 * 640 * tokens)
    memory = _MS * moved / system.memory_bandwidth
    shape = (np.log1p(_TILE / tokens), _small(compute, memory), np.log1p(_BLOCKS / heads))
    return Work(compute, memory, shape, _machine(system, rate))


class Experts(NamedTuple):
    """Routed experts of a model, and how they are split."""

    topk: Dimension
    experts: Dimension
    hidden: Dimension
    inter: Dimension
    moe_tp: Dimension
    moe_ep: Dimension
    matrices: Dimension = 3  # of an expert: gate, up, down


def moe(system: System, quant: str, at: Experts, tokens: Dimension, *, skewed: bool) -> Work:
    """Return the work of routed experts; `skewed`: tokens go to few of them, by a power law.

    An expert's weights are read if any token goes to it: of E experts, E (1 - exp(-tokens topk / E)) are expected.
    """
    topk, experts, hidden, inter, tensor, parallel, matrices = _floats(*at)
    (tokens,) = _floats(tokens)
    rate = flops_of(quant, system)
    routed, width, local = tokens * topk / parallel, inter / tensor, experts / parallel
    each = tokens * topk / experts
    compute = _MS * 2 * matrices * routed * hidden * width / rate
    read = local * -np.expm1(-each)
    moved = matrices * read * hidden * width * bytes_of(quant) + 2 * routed * (2 * hidden + matrices * width)
    memory = _MS * moved / system.memory_bandwidth
    shape = (
        np.log1p(_TILE / each),
        _small(compute, memory),
        np.log1p(1024 / width),
        np.log1p(1024 / hidden),
        np.log(parallel),
        np.log1p(parallel / experts * _TILE),
        np.log1p(rate / system.memory_bandwidth / each),
        np.full_like(tokens, skewed),
        skewed * np.log(parallel),
        skewed * np.log1p(_TILE / each),
    )
    return Work(compute, memory, shape, _machine(system, rate))


def collective(system: System, passes: int, gpus: Dimension, elements: Dimension) -> Work:
    """Return the work of a collective in 2-byte elements: `passes` times its message, less what a GPU has, over its link.

    The compute term is what passes the memory of the GPU itself.
    """
    gpus, elements = _floats(gpus, elements)
    link = np.vectorize(system.bandwidth, otypes=[float])(gpus)
    memory = _MS * passes * 2 * elements * (gpus - 1) / gpus / link
    local = _MS * 3 * 2 * elements / system.memory_bandwidth
    slow = np.where(link < FAST_LINK, 1.0, 0.0)
    shape = (_small(local, memory), slow * _small(local, memory))
    machine = (np.log2(gpus), slow, slow * np.log2(gpus), np.log(link / 3e11))
    return Work(local, memory, shape, machine)


def _floats(*values: Dimension) -> tuple[Floats, ...]:
    return tuple(np.asarray(value, dtype=np.float64) for value in values)


def _small(compute: Floats, memory: Floats) -> Floats:
    return np.log1p(_SMALL / np.maximum(compute + memory, 1e-9))


def _computes_fp8(system: System, kv_cache: str) -> bool:
    return kv_cache == "fp8" and system.sm_version >= _FP8_SM


def _machine(system: System, rate: float) -> tuple[Floats, ...]:
    return (np.asarray(math.log(rate / 1e15)), np.asarray(math.log(system.memory_bandwidth / 3e12)))
