"""Tables of the guide's time, completed or cut to one curve when they are first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeAlias

import numpy as np

from aegis.planner.models.formats import bytes_of, flops_of
from aegis.planner.operations import ContextAttention, ContextMla, GenerationAttention, NoData
from aegis.planner.perf.completion import Lattice, complete
from aegis.planner.perf.guide_grids import TARGETS
from aegis.planner.tables.slices import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.planner.operations import Floats, GenerationMla, Ints, MlaBmm, Moe
    from aegis.planner.systems import System
    from aegis.planner.tables.slices import Key, Slice, Tables

    Curve: TypeAlias = tuple[Ints, Floats]  # sizes and ms
    Attention: TypeAlias = ContextAttention | GenerationAttention | ContextMla | GenerationMla


class GuideStore:
    """The tables of one system as the guide's rules see them."""

    def __init__(self, system: System, tables: Tables) -> None:
        self._system = system
        self._tables = tables
        self._lattices: dict[tuple[str, Key], Lattice] = {}
        self._curves: dict[tuple[object, ...], Curve | None] = {}

    def lattice(self, table: str, key: Key) -> Lattice:
        """Return a completed table.

        Raises:
            NoData: it was not measured, or at too few points.
        """
        found = self._lattices.get((table, key))
        if found is None:
            found = complete(self._load(table, key), TARGETS[table], self._floor(table, key))
            if np.isnan(found.values).any():
                raise NoData(
                    f"{self._tables.system}, {self._tables.backend} {self._tables.version}: {table} of {key} has too few points",
                    hint="two sizes along each axis at least are interpolated between",
                )
            self._lattices[table, key] = found
        return found

    def attention(self, operation: Attention) -> Lattice:
        """Return the completed table of an attention (NoData: not measured)."""
        match operation:
            case ContextAttention():
                return self.lattice(
                    "context_attention", ("default", operation.fmha, operation.kv_cache, *_shape(operation))
                )
            case GenerationAttention():
                return self.lattice(
                    "generation_attention", ("default", operation.kv_cache, *_shape(operation))
                )
            case ContextMla():
                return self.lattice("context_mla", (operation.fmha, operation.kv_cache))
            case _:
                return self.lattice("generation_mla", (operation.kv_cache,))

    def bmm(self, operation: MlaBmm) -> Curve:
        """Return the curve of a batched product over tokens; formats that were not measured take bfloat16's."""
        key: Key = (operation.quant, operation.stage)
        if key not in self._tables.keys("mla_bmm"):
            key = ("bfloat16", operation.stage)
        return self._need("mla_bmm", key, (operation.heads,))

    def moe(self, operation: Moe, lane: str) -> Curve | None:
        """Return the curve of experts over tokens; a distribution that was not measured is taken as uniform."""
        key: Key = (lane, operation.quant, operation.distribution)
        if key not in self._tables.keys("moe"):
            key = (lane, operation.quant, "uniform")
        return self._curve("moe", key, _experts(operation))

    def required(self, curve: Curve | None, operation: Moe) -> Curve:
        """Return the curve, or say that it is not there (NoData)."""
        if curve is None:
            self._missing("moe", (operation.quant, operation.distribution), _experts(operation))
        return curve

    def sizes(self, table: str, key: Key, gpus: int) -> Curve:
        """Return the curve of a collective over elements (NoData: not measured)."""
        return self._need(table, key, (gpus,))

    def largest_group(self, key: Key) -> int:
        """Return the largest measured number of GPUs of an NCCL collective (NoData: none)."""
        return int(self._load("nccl", key).axes[0].max())

    def _need(self, table: str, key: Key, row: tuple[int, ...]) -> Curve:
        curve = self._curve(table, key, row)
        if curve is None:
            self._missing(table, key, row)
        return curve

    def _curve(self, table: str, key: Key, row: tuple[int, ...]) -> Curve | None:
        """Return the last axis of the rows whose other axes are `row`, or None if there are none."""
        name = (table, key, row)
        if name not in self._curves:
            rows = self._tables.load(table, key)
            curve = None
            if rows is not None:
                here = np.logical_and.reduce([axis == at for axis, at in zip(rows.axes, row, strict=False)])
                curve = (rows.axes[-1][here], rows.latency[here]) if here.any() else None
            self._curves[name] = curve
        return self._curves[name]

    def _load(self, table: str, key: Key) -> Slice:
        rows = self._tables.load(table, key)
        if rows is None:
            self._missing(table, key)
        return rows

    def _missing(self, table: str, key: Key, row: tuple[int, ...] = ()) -> NoReturn:
        layout, tables = LAYOUTS[table], self._tables
        asked = ", ".join(map(str, (*key, *row))) or "this"
        columns = ", ".join((*layout.key, *layout.axes[: len(row)]))
        raise NoData(
            f"{tables.system}, {tables.backend} {tables.version}: {table} was not measured for ({columns}) = ({asked})",
            hint="take another split or number format, or the current tables (--estimator aegis)",
        )

    def _floor(self, table: str, key: Key) -> Callable[[Ints, Ints, Ints], Floats] | None:
        """Return the speed of light that a table is kept above, or None."""
        system = self._system
        if table == "gemm":
            quant = str(key[0])
            width, rate = bytes_of(quant, "guide"), flops_of(quant, system, "guide")

            def product(m: Ints, n: Ints, k: Ints) -> Floats:
                operands = width * (m * n + m * k + n * k)
                least: Floats = 1e3 * np.maximum(2.0 * m * n * k / rate, operands / system.memory_bandwidth)

                return least

            return product
        if table == "generation_attention":
            _, kv_cache, kv_heads, head_size, window = key
            return _decoding(
                system, bytes_of(str(kv_cache), "guide"), (int(kv_heads), int(head_size), int(window))
            )
        return None


def _decoding(
    system: System, width: float, shape: tuple[int, int, int]
) -> Callable[[Ints, Ints, Ints], Floats]:
    """Return the speed of light of attention to a KV cache of `width` bytes a value: (heads, batch, length) -> ms."""
    kv_heads, head_size, window = shape

    def attention(heads: Ints, batch: Ints, length: Ints) -> Floats:
        seen = np.minimum(length - 1, window) if window else length - 1
        flops = 4.0 * batch * heads * head_size * seen
        moved = batch * head_size * (4 * heads + 2 * (kv_heads or heads) * seen * width)
        least: Floats = 1e3 * np.maximum(flops / system.flops["bfloat16"], moved / system.memory_bandwidth)
        return least

    return attention


def _shape(operation: ContextAttention | GenerationAttention) -> tuple[int, int, int]:
    kv_heads = 0 if operation.kv_heads == operation.heads else operation.kv_heads
    return kv_heads, operation.head_size, operation.window


def _experts(operation: Moe) -> tuple[int, ...]:
    return (
        operation.topk,
        operation.experts,
        operation.hidden,
        operation.inter,
        operation.moe_tp,
        operation.moe_ep,
    )
