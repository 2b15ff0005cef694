"""Which attention kernels an engine runs on a GPU, where its tables tell them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.models.families.step import Lanes
from aegis.planner.tables.versions import version_order

if TYPE_CHECKING:
    from aegis.planner.systems import System
    from aegis.planner.tables.store import StoredTables

# SGLang's own choice by sm version, since this version (planner-model, section 3.5).
_SINCE = "0.5.14"
_CHOSEN = {90: "fa3", 100: "triton", 103: "triton", 120: "flashinfer"}
_ALL = "default"  # rows of all kernels together


def lanes_of(tables: StoredTables, system: System) -> Lanes:
    """Return the kernels of both phases: the one that the engine chooses, then the ones that were measured most.

    Engines whose choice is not known have all kernels together.
    """
    chosen = _CHOSEN.get(system.sm_version)
    if tables.backend != "sglang" or chosen is None or version_order(tables.version) < version_order(_SINCE):
        return Lanes()
    return Lanes(*(_ordered(tables, f"{phase}_attention", chosen) for phase in ("context", "generation")))


def _ordered(tables: StoredTables, operation: str, chosen: str) -> tuple[str, ...]:
    slices: dict[str, int] = {}
    rows: dict[str, int] = {}
    for key in tables.keys(operation):
        lane = str(key[0])
        slices[lane] = slices.get(lane, 0) + 1
        rows[lane] = rows.get(lane, 0) + tables.rows(operation, key)
    others = sorted({*slices} - {chosen, _ALL}, key=lambda lane: (-slices[lane], -rows[lane], lane))
    return (chosen, *others, _ALL)
