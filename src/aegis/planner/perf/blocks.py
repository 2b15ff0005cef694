"""Blocks that are measured as one piece, by the name of their table: Mamba2, gated delta rule, sparse attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.arrays import distinct
from aegis.planner.operations import NoData
from aegis.planner.perf import block_light as light
from aegis.planner.perf.curves import Curve
from aegis.planner.perf.grid import Grid
from aegis.planner.tables.slices import LAYOUTS

if TYPE_CHECKING:
    from aegis.planner.operations import Floats, Measured, Query
    from aegis.planner.perf.lookups import Lookups
    from aegis.planner.perf.sol import Number
    from aegis.planner.systems import System
    from aegis.planner.tables.slices import Key, Tables

# vLLM 0.24.0 calls one kernel, and was measured with whichever of these it had been built with.
_BUILT_AS = ("flashinfer", "triton", "cutedsl")


class Blocks:
    """Answers for `operations.Measured` (the rules of aiconfigurator 0.12.0, Apache-2.0)."""

    def __init__(self, system: System, lookups: Lookups, tables: Tables) -> None:
        self._system = system
        self._lookups = lookups
        self._tables = tables

    def latency(self, op: Measured, at: Query, *, ideal: bool = False) -> Floats:
        """Return ms of one occurrence; `ideal` is the speed of light.

        Raises:
            NoData: it was not measured, or nothing is known about it.
        """
        if op.table in {"mamba2", "gdn"}:
            return self._state_space(op, at, ideal=ideal)
        if op.table in {"dsa_context_module", "dsa_generation_module"}:
            return self._sparse(op, at, ideal=ideal)
        raise NoData(f"{op.name}: no rule for `{op.table}`")

    def _state_space(self, op: Measured, at: Query, *, ideal: bool) -> Floats:
        """Look it up over (batch, length), in decode steps over the batch; the speed of light where there is none.

        Decode kernels of Mamba2 are always taken at the speed of light, though they were measured.
        """
        values = dict(op.key)
        kernel = str(values["kernel"])
        sizes = {name: int(value) for name, value in op.key if not isinstance(value, str)}
        context = op.phase == "context"

        def of(batch: Number, length: Number) -> Floats:
            new = length if context else 1
            if op.table == "mamba2":
                return light.mamba2(self._system, sizes, kernel, batch * new)
            return light.gated_delta(self._system, sizes, kernel, batch, (new, length))

        batch, length = at.batch, np.maximum(at.length, 1)
        if ideal or (op.table == "mamba2" and not context):
            return of(batch, length)
        try:
            if context:
                return self._lookups.block(op, self._names(op), lambda rows: Grid(rows, of))(
                    (), batch, length
                )
            curve = self._lookups.block(
                op, self._names(op), lambda rows: Curve(rows.axes[0], rows.latency, lambda x: of(x, 1))
            )
        except NoData:
            return of(batch, length)
        return curve(batch.astype(np.float64))

    def _names(self, op: Measured) -> list[Key]:
        """Return the keys that answer, in order of preference."""
        layout, values = LAYOUTS[op.table], dict(op.key)
        exact: Key = tuple(values[column] for column in layout.key)
        keys = self._tables.keys(op.table)
        if op.table == "mamba2":
            return [exact, *(key for key in keys if key[:3] == exact[:3])]
        if (self._tables.backend, self._tables.version) == ("vllm", "0.24.0"):
            built = [
                key
                for key in keys
                if key[1:] == exact[1:] and key[0] in {f"{exact[0]}_{by}" for by in _BUILT_AS}
            ]
            return [] if len(built) > 1 else [*built, exact]
        return [exact]

    def _sparse(self, op: Measured, at: Query, *, ideal: bool) -> Floats:
        values = dict(op.key)
        sizes = light.SPARSE.get(str(values["architecture"]))
        if sizes is None:
            raise NoData(f"{op.name}: the sizes of {values['architecture']} are not known")
        formats = light.SparseFormats(
            str(values["gemm"]), str(values["kv_cache"]), str(values.get("fmha", "bfloat16"))
        )
        heads = int(values["heads"])
        if op.phase == "generation":

            def decode(*where: Number) -> Floats:
                return light.sparse_generation(self._system, sizes, formats, where)  # type: ignore[arg-type]

            if ideal:
                return decode(heads, at.batch, at.length)
            return self._lookups.block(op, self._lanes(op), lambda rows: Grid(rows, decode))(
                (heads,), at.batch, at.length
            )

        def prefill(*where: Number) -> Floats:
            indexer = values["lane"] != "skip"
            return light.sparse_context(self._system, sizes, formats, where, indexer=indexer)  # type: ignore[arg-type]

        if ideal:
            return prefill(heads, at.prefix, at.length, at.batch)
        grid = self._lookups.block(op, self._lanes(op), lambda rows: Grid(rows, prefill))
        result = np.empty(np.broadcast_shapes(at.batch.shape, at.length.shape, at.prefix.shape))
        for prefix in distinct(at.prefix):
            chosen = np.broadcast_to(at.prefix == prefix, result.shape)
            batch, length = (np.broadcast_to(axis, result.shape)[chosen] for axis in (at.batch, at.length))
            result[chosen] = grid((heads, int(prefix)), length, batch)
        return result

    def _lanes(self, op: Measured) -> list[Key]:
        """Return the keys that answer: layers without an indexer count as full ones where none was measured."""
        values = dict(op.key)
        exact: Key = tuple(values[column] for column in LAYOUTS[op.table].key)
        if exact[0] == "skip" and not any(key[0] == "skip" for key in self._tables.keys(op.table)):
            return [("full", *exact[1:])]
        return [exact]
