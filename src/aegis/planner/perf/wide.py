"""What was measured of wide experts: transports, the experts behind them, and SGLang's latent attention beside them."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from aegis.planner.models.wide import TRANSPORT_SMS, one_node
from aegis.planner.operations import ContextMla, GenerationMla, NoData
from aegis.planner.perf.curves import Curve
from aegis.planner.perf.grid import Grid
from aegis.planner.perf.lookups import ELSEWHERE, Lookups, narrow
from aegis.planner.perf.wide_light import wide_context, wide_generation

if TYPE_CHECKING:
    from aegis.planner.operations import ContextAttention, ExpertExchange, GenerationAttention, MlaModule, Moe
    from aegis.planner.tables.slices import Key

_LANE = "flashinfer"  # the usual kernel of latent attention: SGLang's default


class WideLookups(Lookups):
    """All tables, those of wide experts too."""

    def grid(
        self, op: ContextAttention | GenerationAttention | ContextMla | GenerationMla | MlaModule
    ) -> Grid:
        """Return the grid that answers for an attention, over (heads, length, batch) or (heads, batch, length).

        Raises:
            NoData: it was not measured.
        """
        if isinstance(op, ContextMla | GenerationMla) and op.wide:
            return self._wide_mla(op)
        return super().grid(op)

    def _wide_mla(self, op: ContextMla | GenerationMla) -> Grid:
        """Return latent attention beside wide experts: of the usual kernel, or the one that was measured."""
        context = isinstance(op, ContextMla)
        name = f"wideep_{'context' if context else 'generation'}_mla"
        fixed = (op.fmha, op.kv_cache) if isinstance(op, ContextMla) else (op.kv_cache,)

        def build() -> Grid:
            measured = [key for key in self._tables.keys(name) if key[1:] == fixed]
            table = self._slice(name, [(_LANE, *fixed), *measured], op)
            return Grid(
                table,
                partial(wide_context if context else wide_generation, self._light.system),
                roots=context,
            )

        return self._once((name, fixed), build)

    def wide_moe(self, op: Moe) -> Curve | None:
        """Return a curve over tokens of experts that tokens reach by a transport, or None if it was not measured."""
        kernels = dict.fromkeys(key[0] for key in self._tables.keys("moe_ep"))
        site = (op.topk, op.experts, op.experts, op.hidden, op.inter, op.moe_tp, op.moe_ep)

        def build() -> Curve | None:
            for kernel, distribution in product(kernels, dict.fromkeys((op.distribution, "uniform"))):
                key: Key = (kernel, op.quant, distribution, str(op.wide))
                table = self._tables.load("moe_ep", key)
                rows = None if table is None else narrow(table, site)
                if rows is not None and len(rows.latency):
                    self.used.add(("moe_ep", key))
                    return Curve(rows.axes[-1], rows.latency, lambda tokens: self._light.moe(op, tokens))
            return None

        return self._once(("moe_ep", op.wide, op.quant, op.distribution, op.gated, site), build)

    def exchange(self, op: ExpertExchange, gpus_per_node: int) -> Curve:
        """Return one stage of an all-to-all over tokens; within one node where it was not measured over several.

        Raises:
            NoData: it was not measured.
        """
        shape = (op.hidden, op.topk, op.experts, TRANSPORT_SMS.get(op.transport, 0))

        def build() -> Curve:
            table = self._slice("moe_a2a", [(op.transport, op.stage, op.format)], op)
            node = one_node(self._tables.backend, gpus_per_node)
            for place in ((op.gpus, op.nodes), (node, 1)):
                rows = narrow(table, (*place, *shape))
                if len(rows.latency):
                    return Curve(rows.axes[-1], rows.latency, np.asarray)
            raise NoData(f"{op.name}: not measured for {op.gpus} GPUs", hint=ELSEWHERE)

        return self._once(("moe_a2a", op.transport, op.stage, op.format, op.gpus, op.nodes, shape), build)
