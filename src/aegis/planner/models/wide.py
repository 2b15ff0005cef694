"""Wide experts: where an all-to-all transport and experts spread over many GPUs were both measured, engines use them.

The rules of aiconfigurator 0.12.0 (Apache-2.0): which transports there are, which comes first, and what has to be in
the tables before a split is taken to use one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from aegis.planner.arrays import distinct
from aegis.planner.problem import WideExperts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.planner.models.shapes import ModelShape
    from aegis.planner.operations import Ints, Phase
    from aegis.planner.problem import Backend, Parallel, WorkerSearch
    from aegis.planner.systems import System
    from aegis.planner.tables.slices import Tables

Stage: TypeAlias = Literal["prepare", "dispatch", "combine"]

# Distribution of tokens over experts, by the families that are known so.
_FAMILIES = {
    "MOE": "power_law_1.2",
    **dict.fromkeys(("DEEPSEEK", "DEEPSEEKV32", "KIMIK25"), "power_law_1.01"),
}
TRANSPORT_SMS = {"deepep_ht": 20}  # multiprocessors that move tokens, where a transport takes any
_MOST_TOPK = 8
_BLACKWELL = 100
_HOPPER = 90
_SGLANG_NODE = 8  # GPUs: its tables are of such nodes, whatever the system has


class _Transport(NamedTuple):
    name: str
    backends: tuple[Backend, ...]
    phases: tuple[Phase, ...]
    stages: tuple[Stage, ...] = ("dispatch", "combine")
    least_sm: int = 0
    over_nodes: bool = False  # what was measured within a node stands in for several nodes


# In order of preference.
_TRANSPORTS = (
    _Transport("deepep_ht", ("sglang", "vllm"), ("context",), over_nodes=True),
    _Transport("deepep_ll", ("sglang", "vllm"), ("generation",), over_nodes=True),
    _Transport("trtllm_deepep_ht", ("trtllm",), ("context",), over_nodes=True),
    _Transport("trtllm_deepep_ll", ("trtllm",), ("generation",), over_nodes=True),
    _Transport(
        "nvlink_two_sided",
        ("trtllm",),
        ("context", "generation"),
        ("prepare", "dispatch", "combine"),
        _BLACKWELL,
    ),
    _Transport("nvlink_one_sided", ("trtllm",), ("context", "generation"), least_sm=_BLACKWELL),
)


def stages_of(transport: str) -> tuple[Stage, ...]:
    """Return the stages of a transport, in order."""
    return next(each.stages for each in _TRANSPORTS if each.name == transport)


def one_node(backend: str, gpus_per_node: int) -> int:
    """Return the GPUs of the node that a transport was measured within."""
    return _SGLANG_NODE if backend == "sglang" else gpus_per_node


def travel_format(
    transport: str, quant: str, *, stage: Stage, phase: Phase, sm_version: int = 0
) -> str | None:
    """Return the format in which tokens of experts of a format travel, as the tables name it; None: they cannot."""
    if transport.startswith("deepep"):
        return "default"
    quant = {"fp8_block": "fp8"}.get(quant, quant)
    if transport == "trtllm_deepep_ht":
        return {"nvfp4": "nvfp4", "bfloat16": "bfloat16", "fp8": "bfloat16"}.get(quant)
    if transport == "trtllm_deepep_ll":
        if quant == "nvfp4" and sm_version != _HOPPER:
            return "fp4" if stage == "combine" else quant
        return quant if quant in {"bfloat16", "fp8"} else None
    return "fp4" if (quant, phase, stage) == ("nvfp4", "generation", "combine") else quant


def wide_experts(model: ModelShape, quant: str, *, tables: Tables, system: System) -> tuple[WideExperts, ...]:
    """Return the sizes of groups of GPUs that experts of a format were measured on, with their transports.

    Only sizes that both prefill and decode were measured for count: a worker's weights are sized by one of them.
    """
    distribution = _FAMILIES.get(model.family)
    if distribution is None or not model.has_experts or model.topk > _MOST_TOPK:
        return ()
    phases: tuple[Phase, Phase] = ("context", "generation")
    prefill, decode = (
        _Phase(model, quant, distribution, tables, system, phase).transports() for phase in phases
    )
    return tuple(
        WideExperts(gpus=gpus, nodes=_nodes(gpus, system), prefill=prefill[gpus], decode=decode[gpus])
        for gpus in sorted(prefill.keys() & decode.keys())
    )


def transports_of(split: Parallel, wide: tuple[WideExperts, ...], backend: Backend) -> WideExperts | None:
    """Return the transports of a split, None if its experts are not wide. TensorRT-LLM's need attention dp."""
    if split.moe_tp > 1 or (backend == "trtllm" and split.dp == 1):
        return None
    return next((each for each in wide if each.gpus == split.moe_ep), None)


def spreads(search: WorkerSearch) -> bool:
    """Tell whether experts were measured over several nodes, and any split has wide ones."""
    found = any(transports_of(split, search.wide, search.backend) for split in search.splits)
    return found and any(each.nodes > 1 for each in search.wide)


def _nodes(gpus: int, system: System) -> int:
    return -(-gpus // system.gpus_per_node)


class _Phase(NamedTuple):
    """What was measured of a model's experts in one phase."""

    model: ModelShape
    quant: str
    distribution: str
    tables: Tables
    system: System
    phase: Phase

    def transports(self) -> dict[int, str]:
        """Return the transport by the number of GPUs."""
        found: dict[int, str] = {}
        sizes = self._computed()
        for transport in _TRANSPORTS:
            if (
                self.tables.backend in transport.backends
                and self.phase in transport.phases
                and self.system.sm_version >= transport.least_sm
            ):
                carried = self._carried(transport, "dispatch") & self._carried(transport, "combine")
                for gpus in sizes:
                    if self._reaches(transport, gpus, carried):
                        found.setdefault(gpus, transport.name)
        return found

    def _reaches(self, transport: _Transport, gpus: int, carried: set[tuple[int, int]]) -> bool:
        nodes = _nodes(gpus, self.system)
        within = (one_node(self.tables.backend, self.system.gpus_per_node), 1)
        return (gpus, nodes) in carried or (transport.over_nodes and nodes > 1 and within in carried)

    def _carried(self, transport: _Transport, stage: Stage) -> set[tuple[int, int]]:
        """Return (GPUs, nodes) that a stage was measured for with tokens of this model."""
        sm = self.system.sm_version
        name = travel_format(transport.name, self.quant, stage=stage, phase=self.phase, sm_version=sm)
        table = self.tables.load("moe_a2a", (transport.name, stage, name)) if name else None
        if table is None:
            return set()
        gpus, nodes, hidden, topk, experts, *_ = table.axes
        here = (hidden == self.model.hidden) & (topk == self.model.topk) & (experts == self.model.experts)
        return set(zip(gpus[here].tolist(), nodes[here].tolist(), strict=True))

    def _computed(self) -> list[int]:
        """Return the numbers of GPUs that the experts themselves were measured on."""
        model = self.model
        sizes = {gpus for found in self._sites() for gpus in found}
        return sorted(each for each in sizes if 1 < each <= model.experts and model.experts % each == 0)

    def _sites(self) -> Iterator[list[int]]:
        """Yield these numbers, from the tables of wide experts, and where an engine's are the same, of all others."""
        model = self.model
        for key in self.tables.keys("moe_ep"):
            if key[1:] == (self.quant, self.distribution, self.phase):
                table = self.tables.load("moe_ep", key)
                if table is not None:
                    topk, experts, _, hidden, inter, *rest = table.axes
                    yield _gpus_of(model, (topk, experts, hidden, inter, *rest))
        if self.tables.backend == "sglang":
            return
        for name in dict.fromkeys((self.distribution, "uniform")):
            table = self.tables.load("moe", ("default", self.quant, name))
            if table is not None:
                yield _gpus_of(model, table.axes)


def _gpus_of(model: ModelShape, axes: Sequence[Ints]) -> list[int]:
    """Return on how many GPUs the experts of a model were measured, unsplit."""
    wanted = (model.topk, model.experts, model.hidden, model.moe_inter, 1)
    here = np.logical_and.reduce([axis == value for axis, value in zip(axes, wanted, strict=False)])
    sizes: list[int] = distinct(axes[len(wanted)][here]).tolist()
    return sizes
