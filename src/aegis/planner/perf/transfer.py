"""Whose utilisation stands in for an operation that was not measured: another shape, format or head size.

The ladder of aiconfigurator 0.12.0 (Apache-2.0): the operation's own points; other shapes; other formats of the same
bytes and rate; the nearest other format, scaled by the utilisation that formats typically reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from aegis.planner.models.formats import FORMATS
from aegis.planner.operations import ContextAttention, GenerationAttention, NoData
from aegis.planner.perf.utilisation import Utilisation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.operations import Floats, Moe
    from aegis.planner.perf.lookups import Lookups
    from aegis.planner.perf.sol import SpeedOfLight
    from aegis.planner.tables.slices import Tables


# Utilisation that a format typically reaches, by (bytes, multiple of the bfloat16 rate); only ratios count.
_GEMM_LEVEL: dict[tuple[float, float], float] = {
    (2, 1): 0.70,
    (1, 1): 0.55,
    (9 / 16, 1): 0.45,
    (0.5, 1): 0.45,
    (1, 2): 0.45,
    (0.5, 2): 0.35,
    (1, 4): 0.30,
    (0.5, 4): 0.30,
    (9 / 16, 4): 0.30,
}
_MOE_LEVEL: dict[tuple[float, float], float] = {
    (2, 1): 0.53,
    (1, 1): 0.45,
    (9 / 16, 1): 0.07,
    (0.5, 1): 0.07,
    (1, 2): 0.40,
    (0.5, 2): 0.15,
    (1, 4): 0.30,
    (0.5, 4): 0.23,
    (9 / 16, 4): 0.23,
}
# Utilisation of prefill attention by head size, relative to 128.
_HEAD_SIZES = (64, 128, 192, 256, 512)
_HEAD_LEVEL = {
    "trtllm": (0.58, 1.0, 1.10, 1.17, 1.20),
    "sglang": (0.60, 1.0, 1.18, 1.32, 1.38),
    "vllm": (0.60, 1.0, 1.27, 1.51, 1.60),
}
_USUAL_HEAD = 128


def gemm(quant: str, tables: Tables, lookups: Lookups, light: SpeedOfLight) -> tuple[Utilisation, float]:
    """Return a utilisation over (n, k; m), and how much of it the wanted format reaches.

    Raises:
        NoData: no GEMM was measured.
    """
    measured = [str(key[0]) for key in tables.keys("gemm")]
    for source, part in _formats(quant, measured, _GEMM_LEVEL, compute_first=True):
        n, k, m, latency = lookups.gemm(source).points()
        ideal = light.gemm(quant if part == 1 else source, m, n, k)
        return Utilisation((n, k, m), ideal, latency, fixed=2), part
    raise NoData("the tables hold no GEMM")


def attention(
    op: ContextAttention | GenerationAttention, tables: Tables
) -> Iterator[tuple[ContextAttention | GenerationAttention, float]]:
    """Yield the operations whose points may stand in, itself first, and how their utilisation compares."""
    context = isinstance(op, ContextAttention)
    kv_heads = 0 if op.kv_heads == op.heads else op.kv_heads
    fixed = (op.fmha, op.kv_cache, kv_heads) if isinstance(op, ContextAttention) else (op.kv_cache, kv_heads)
    keys = tables.keys("context_attention" if context else "generation_attention")
    sizes = sorted({int(key[-2]) for key in keys if key[1:-2] == fixed})
    for window in dict.fromkeys((op.window, 0)):
        relative = replace(op, window=window)
        yield relative, 1.0
        if sizes:
            usual = (
                _USUAL_HEAD
                if _USUAL_HEAD in sizes
                else min(sizes, key=lambda size: abs(np.log(size / op.head_size)))
            )
            part = _head_level(tables.backend, op.head_size) / _head_level(tables.backend, usual)
            yield replace(relative, head_size=usual), part if context else 1.0


def moe(
    op: Moe, lane: str, tables: Tables, lookups: Lookups, light: SpeedOfLight
) -> tuple[Utilisation, float]:
    """Return a utilisation over tokens, and how much of it the wanted experts reach.

    Raises:
        NoData: no experts of this split were measured.
    """
    own = lookups.moe(op, lane)
    if own is not None:
        return _of_experts(own.points, own.latency, op, light), 1.0
    measured = list(dict.fromkeys(str(key[1]) for key in tables.keys("moe") if key[0] == lane))
    for source, part in _formats(op.quant, measured, _MOE_LEVEL, compute_first=False):
        nearest = _nearest_experts(replace(op, quant=source), lane, tables)
        if nearest is not None:
            curve = lookups.moe(nearest, lane)
            if curve is not None:
                ideal_op = nearest if part != 1 else replace(nearest, quant=op.quant)
                return _of_experts(curve.points, curve.latency, ideal_op, light), part
    raise NoData(
        f"{op.name}: no experts split {op.moe_tp} x {op.moe_ep} were measured",
        hint="another split of the experts",
    )


def _of_experts(tokens: Floats, latency: Floats, op: Moe, light: SpeedOfLight) -> Utilisation:
    return Utilisation((tokens,), light.moe(op, tokens), latency, fixed=0)


def _nearest_experts(op: Moe, lane: str, tables: Tables) -> Moe | None:
    """Return the measured experts of the same split that are most alike, on logarithmic scales."""
    for distribution in (op.distribution, "uniform"):
        table = tables.load("moe", (lane, op.quant, distribution))
        if table is not None:
            break
    else:
        return None
    shapes = np.unique(np.stack(table.axes[:6], axis=1), axis=0)
    shapes = shapes[(shapes[:, 4] == op.moe_tp) & (shapes[:, 5] == op.moe_ep)]
    if len(shapes) == 0:
        return None
    logs = np.log(shapes[:, :4].astype(np.float64))
    span = np.ptp(logs, axis=0)
    span[span == 0] = 1
    wanted = np.log(np.array((op.topk, op.experts, op.hidden, op.inter), dtype=np.float64))
    best = np.square((logs - wanted) / span).sum(axis=1).argmin()
    topk, experts, hidden, inter = (int(value) for value in shapes[best, :4])
    return replace(op, topk=topk, experts=experts, hidden=hidden, inter=inter, distribution=distribution)


def _formats(
    quant: str, measured: list[str], level: dict[tuple[float, float], float], *, compute_first: bool
) -> Iterator[tuple[str, float]]:
    """Yield measured formats, the most alike first, and how much of their utilisation the wanted one reaches."""
    size, rate = FORMATS[quant].bytes, FORMATS[quant].multiple

    def distance(name: str) -> tuple[float, float]:
        sizes, rates = abs(FORMATS[name].bytes - size), abs(FORMATS[name].multiple - rate)
        return (rates, sizes) if compute_first else (sizes + rates, 0)

    known = sorted(
        (name for name in measured if name in FORMATS), key=lambda name: (name != quant, distance(name))
    )
    alike = next((name for name in known if distance(name) == (0, 0)), None)
    for name in known:
        if name == alike:
            yield name, 1.0
        elif distance(name) != (0, 0):
            yield name, level[size, rate] / level[FORMATS[name].bytes, FORMATS[name].multiple]


def _head_level(backend: str, size: int) -> float:
    return float(
        np.interp(np.log2(size), np.log2(_HEAD_SIZES), _HEAD_LEVEL.get(backend, (1.0,) * len(_HEAD_SIZES)))
    )
