"""What the pictures of a plan show: a curve for each experiment, the chosen point, the target."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from aegis.planner.report.document import rows, split_name
from aegis.planner.report.words import INTERVAL, between

if TYPE_CHECKING:
    from aegis.planner.answer import Candidate
    from aegis.planner.plan import Plan
    from aegis.planner.task import Experiment

X, Y = "tokens/s/user", "tokens/s/gpu"


class Point(Struct, frozen=True, omit_defaults=True):
    """A configuration of a frontier, with what it is in words: (name, value) in the order of reading."""

    x: float
    y: float
    facts: tuple[tuple[str, str], ...]
    low: float | None = None  # between these y lies with 80 % probability, if that is known
    high: float | None = None


class Curve(Struct, frozen=True, kw_only=True):
    """The frontier of an experiment, slowest user first; `best` are its ranked configurations."""

    name: str
    points: tuple[Point, ...]
    best: tuple[Point, ...]
    chosen: bool


class Picture(Struct, frozen=True, kw_only=True):
    """Everything that is drawn."""

    title: str
    subtitle: str
    curves: tuple[Curve, ...]
    target: float | None  # tokens/s/user that are asked for
    notes: tuple[str, ...]


def picture_of(plan: Plan) -> Picture:
    """Return what is drawn of a plan."""
    first = plan.experiments[plan.chosen or 0]
    curves = tuple(
        Curve(
            name=experiment.name,
            points=_points(experiment, answer.frontier),
            best=_points(experiment, answer.best),
            chosen=index == plan.chosen,
        )
        for index, (experiment, answer) in enumerate(zip(plan.experiments, plan.answers, strict=True))
    )
    notes = [note for answer in plan.answers for note in (*answer.notes, answer.why_none) if note]
    load, targets = first.load, first.targets
    system = dict.fromkeys(search.system for kinds in first.searches for search in kinds)
    asked = [f"{first.total_gpus} x {' + '.join(system)}", f"{load.isl} input, {load.osl} output tokens"]
    asked += [f"{load.prefix} of them cached"] * (load.prefix > 0)
    asked += [f"TTFT ≤ {targets.ttft:g} ms"] * math.isfinite(targets.ttft)
    slowest = targets.tpot if targets.request_latency is None else math.inf
    asked += [f"TPOT ≤ {slowest:g} ms"] * math.isfinite(slowest)
    asked += [f"request ≤ {targets.request_latency:g} ms"] if targets.request_latency else []
    return Picture(
        title=first.model_name,
        subtitle=" · ".join(asked),
        curves=curves,
        target=1000 / slowest if math.isfinite(slowest) else None,
        notes=tuple(dict.fromkeys(notes)),
    )


def _points(experiment: Experiment, candidates: tuple[Candidate, ...]) -> tuple[Point, ...]:
    return tuple(
        Point(
            row[X],
            row[Y],
            tuple(_facts(experiment, candidate, row)),
            row.get(f"{Y}_low"),
            row.get(f"{Y}_high"),
        )
        for candidate, row in zip(candidates, rows(experiment, candidates), strict=True)
    )


def _certainty(candidate: Candidate) -> list[tuple[str, str]]:
    if not candidate.spread:
        return []
    return [
        (INTERVAL, between(candidate.tokens_per_s_gpu, candidate.spread)),
        ("measured like it", str(candidate.measured)),
    ]


def _facts(experiment: Experiment, candidate: Candidate, row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a configuration is, exactly enough to be set up."""
    replicas = candidate.replicas(experiment.total_gpus)
    facts = [
        ("tokens/s/GPU", f"{row[Y]:.2f}"),
        *_certainty(candidate),
        ("of all GPUs", f"{candidate.cluster_throughput(experiment.total_gpus):.2f}"),
        ("tokens/s/user", f"{row[X]:.2f}"),
        ("TTFT", f"{candidate.ttft:.2f} ms"),
        ("TPOT", f"{candidate.tpot:.2f} ms"),
        ("requests at a time", f"{candidate.concurrency * replicas} = {candidate.concurrency} x {replicas}"),
        ("replicas", f"{replicas} of {candidate.gpus} GPUs"),
    ]
    for workers in candidate.workers:
        mark = "" if workers.role == "agg" else f"{workers.role} "
        dense = f"tp{workers.parallel.tp}pp{workers.parallel.pp}"
        split = split_name(workers.parallel) if experiment.model.has_experts else dense
        count = f"{workers.count} x " if candidate.mode == "disagg" else ""
        formats = workers.quantization
        facts += [
            (f"{mark}workers", f"{count}{split}, batch {workers.batch}, {workers.memory:.1f} GiB"),
            (f"{mark}formats", f"{formats.gemm}, KV cache {formats.kv_cache}"),
            (f"{mark}engine", f"{workers.backend} {workers.version} on {workers.system}".replace("  ", " ")),
        ]
    if candidate.context_tokens:
        facts.append(("context tokens of a step", str(candidate.context_tokens)))
    return [*facts, *(("note", note) for note in candidate.notes)]
