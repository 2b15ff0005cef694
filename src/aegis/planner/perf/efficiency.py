"""Efficiency curves: what part of the hardware's limits an operation reaches. Data: data/planner/efficiency.json."""

from __future__ import annotations

from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from msgspec import Struct

from aegis.planner.models.formats import FORMATS
from aegis.planner.operations import NoData
from aegis.planner.problem import BACKENDS
from aegis.planner.systems import DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aegis.planner.operations import Floats
    from aegis.planner.perf.work import Work
    from aegis.planner.systems import System

FILE = DATA / "efficiency.json"

SHARPNESS = 4.0  # of the rounded corner between the limit of compute and the limit of memory

# ln of the least that a factor may be: nothing computes above its peak, and caches help little at sizes that matter.
LEAST_COMPUTE = 0.0
LEAST_MEMORY = -0.1

# What errors of whole steps are summed up as.
ONE_GPU, SEVERAL_GPUS = "steps on 1 GPU", "steps on several GPUs"

# Whose error is taken: of systems with a sibling in the fit, without one, of another maker, with several GPUs on PCIe.
Band: TypeAlias = Literal["family", "stranger", "maker", "slow links"]
_OTHER_MAKERS = {"b60"}
_SLOW_LINKS = {"b60", "l40s", "rtx_pro_6000_server"}

_NOTHING = 1e-12  # ms

_FAMILIES = {
    80: "ampere",
    86: "ampere",
    89: "ada",
    90: "hopper",
    100: "blackwell",
    103: "blackwell",
    120: "geforce",
}


class Term(Struct, frozen=True):
    """ln of a factor (or, of the overhead, of ms): linear in the features, moved for a family of GPUs."""

    base: float
    shape: tuple[float, ...] = ()
    machine: tuple[float, ...] = ()
    families: dict[str, float] = {}

    def ln(self, work: Work, family: str) -> Floats:
        """Return ln of the factor, in the shape that the features broadcast to."""
        total = np.asarray(self.base + self.families.get(family, 0.0))
        for weight, feature in zip(self.shape, work.shape, strict=False):
            total = total + weight * feature
        for weight, feature in zip(self.machine, work.machine, strict=False):
            total = total + weight * feature
        return total


class Factor(Struct, frozen=True, kw_only=True):
    """How much longer than the curves say a system without tables takes, from a published measurement."""

    compute: float = 1.0
    memory: float = 1.0
    source: str


_SAME = Factor(source="")


class Curve(Struct, frozen=True, kw_only=True):
    """The latency of one operation in one number format on one backend."""

    operation: str
    format: str
    backend: str
    compute: Term  # ln 1 / efficiency
    memory: Term
    overhead: Term  # ln ms
    systems: tuple[str, ...]  # fitted on the tables of these

    def latency(self, work: Work, family: str, factor: Factor = _SAME) -> Floats:
        """Return ms: overhead + the rounded maximum of both times, each over its efficiency."""
        compute = np.maximum(self.compute.ln(work, family), LEAST_COMPUTE)
        memory = np.maximum(self.memory.ln(work, family), LEAST_MEMORY)
        a = work.compute * np.exp(compute) * factor.compute
        b = work.memory * np.exp(memory) * factor.memory
        longer = np.maximum(np.maximum(a, b), _NOTHING)
        rounded = longer * (1 + (np.minimum(a, b) / longer) ** SHARPNESS) ** (1 / SHARPNESS)
        return np.exp(self.overhead.ln(work, family)) + rounded


class Held(Struct, frozen=True, array_like=True):
    """Relative errors on one system when the curves were fitted without it."""

    system: str
    backend: str
    what: str  # an operation, a step of a model ("decode LLAMA3.1_8B"), or ONE_GPU, SEVERAL_GPUS
    family_known: bool  # another system of its family was in the fit
    rows: int
    median: float  # of the absolute
    bound: float  # 90 % of the absolute are smaller
    low: float  # 5 %
    high: float  # 95 %


class Efficiency(Struct, frozen=True, kw_only=True):
    """All of the data file."""

    source: str
    how: str
    curves: tuple[Curve, ...]
    factors: dict[str, Factor] = {}  # by system
    held_out: tuple[Held, ...] = ()

    def factor(self, system: System) -> Factor:
        """Return what is known of a system apart from the curves."""
        return self.factors.get(system.name, _SAME)

    def curve(self, operation: str, number_format: str, backend: str) -> Curve:
        """Return the curve of an operation, or the nearest that was fitted: other backends, then other formats.

        Raises:
            NoData: no such operation.
        """
        fitted = _keyed(self.curves)
        for one in _formats_like(number_format):
            for engine in (backend, *(each for each in BACKENDS if each != backend)):
                found = fitted.get((operation, one, engine))
                if found is not None:
                    return found
        raise NoData(f"there is no efficiency curve for {operation} ({number_format})")


class Error(NamedTuple):
    """What is wrong with one operation or step, over the systems that were held out; relative."""

    what: str
    systems: int
    median: float
    bound: float  # 90 %
    low: float
    high: float


def errors(data: Efficiency, *, family_known: bool) -> list[Error]:
    """Return the errors on systems that were held out, with or without another of their family in the fit."""
    groups: dict[str, list[Held]] = {}
    for each in data.held_out:
        if each.family_known == family_known:
            groups.setdefault(each.what, []).append(each)
    return [
        Error(
            what,
            len({each.system for each in group}),
            *(
                round(fmean(getattr(each, name) for each in group), 3)
                for name in ("median", "bound", "low", "high")
            ),
        )
        for what, group in sorted(groups.items())
    ]


def bands(data: Efficiency) -> dict[Band, float]:
    """Return within what 9 of 10 step times were, as means over held-out systems."""

    def bound(what: str, wanted: Callable[[Held], bool]) -> float:
        return fmean(each.bound for each in data.held_out if each.what == what and wanted(each))

    return {
        "family": bound(ONE_GPU, lambda each: each.family_known),
        "stranger": bound(ONE_GPU, lambda each: not each.family_known),
        "maker": bound(ONE_GPU, lambda each: each.system in _OTHER_MAKERS),
        "slow links": bound(SEVERAL_GPUS, lambda each: each.system in _SLOW_LINKS),
    }


def family(system: System) -> str:
    """Return the family of a GPU: those of one kind of core and driver behave alike."""
    if system.sm_version:
        return _FAMILIES.get(system.sm_version, f"sm{system.sm_version}")
    return system.title.partition(" ")[0].lower() or "unknown"  # the maker


@cache
def efficiency() -> Efficiency:
    """Return the curves that come with the project."""
    return msgspec.json.decode(FILE.read_bytes(), type=Efficiency)


def _keyed(curves: tuple[Curve, ...]) -> dict[tuple[str, str, str], Curve]:
    return {(each.operation, each.format, each.backend): each for each in curves}


def _formats_like(name: str) -> Iterator[str]:
    """The format itself, those that compute with the same cores, and bfloat16."""
    yield name
    parts = name.split("/")
    if len(parts) == 1 and name in FORMATS:
        yield from (each for each in FORMATS if FORMATS[each].tensor == FORMATS[name].tensor and each != name)
    yield "/".join(["bfloat16"] * len(parts))
