"""Sweeps that were made by hand."""

from __future__ import annotations

from typing import Any

from aegis.bench.sweep.document import Planned, Point, Question, ServerPoint, Sweep, Targets
from aegis.bench.sweep.table import FIGURES

QUESTION = Question(model="m", servers=("a:1", "b:2"), kind="concurrency", input_tokens=64, output_tokens=16)
PLANNED = Planned(
    file="plan.json",
    model="M",
    system="a100_sxm",
    backend="vllm",
    version="1",
    split="tp2",
    notes=("estimated",),
)


def figures(throughput: float, **more: float) -> dict[str, float]:
    """Figures whose latencies follow from the throughput."""
    made = dict.fromkeys(FIGURES, 10000 / throughput)
    counts = {"completed": 40.0, "failed": 0.0, "total_input_tokens": 2560.0, "total_output_tokens": 640.0}
    rates = {
        "request_throughput": throughput / 16,
        "output_throughput": throughput,
        "total_token_throughput": 5 * throughput,
    }
    return {**made, **counts, **rates, **more}


def point(
    level: float, throughput: float, *, error: float | None = 0.005, failed: int = 0, **more: Any
) -> Point:
    values = figures(throughput, failed=failed, **more.pop("figures", {}))
    noise = {} if error is None else {name: error * value for name, value in values.items()}
    half = figures(throughput / 2)
    given: dict[str, Any] = {
        "level": level,
        "began": "2026-01-02T03:04:05+00:00",
        "figures": values,
        "noise": noise,
        "slices": 5,
        "seconds": 3.0,
        "sent": 60,
        "failed": failed,
        "servers": tuple(ServerPoint(address=address, figures=half) for address in QUESTION.servers),
    }
    return Point(**{**given, **more})


def sweep(*points: Point, **more: Any) -> Sweep:
    return Sweep(**{"question": QUESTION, "points": points, "machine": {"host": "login1"}, **more})


def planned(level: float, throughput: float, factor: float = 2.0) -> Point:
    """A point whose plan says that everything takes so many times as long."""
    values = figures(throughput)
    predicted = {
        "concurrency": level,
        "prefill_share": 0.0,
        "request_throughput": values["request_throughput"] / factor,
        "output_throughput": throughput / factor,
        "mean_ttft_ms": values["mean_ttft_ms"] * factor,
        "mean_tpot_ms": values["mean_tpot_ms"] * factor,
        "mean_e2el_ms": values["mean_e2el_ms"] * factor,
    }
    return point(level, throughput, predicted=predicted)


TARGETS = Targets(ttft=20.0, tpot=30.0)
