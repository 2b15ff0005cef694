"""What a plan says of the points of a sweep."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from msgspec.structs import replace

from aegis.bench.sweep.document import Planned
from aegis.errors import AegisError
from aegis.planner.calibrate import read_calibrations
from aegis.planner.predict import Predictor, read_configuration

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.bench.sweep.document import Point, Sweep

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here multiplies matrices


class Predict:
    """What a plan says of points."""

    def __init__(self, file: Path, calibration: Path | None) -> None:
        self.file = file
        known = read_calibrations(calibration) if calibration else ()
        self.calibrated = bool(known)
        self.problems: dict[str, None] = {}  # what the plan cannot answer for
        self.predictor = Predictor(read_configuration(file), known)
        self.predictor.at_concurrency(
            1, isl=1000, osl=100
        )  # what is wrong with it shows before the servers are asked

    @property
    def gpus(self) -> int:
        """GPUs of one server."""
        return self.predictor.configuration.split.gpus

    def added(self, sweep: Sweep) -> Sweep:
        """Return a sweep with the predictions for its points."""
        points = tuple(replace(point, predicted=self._figures(sweep, point)) for point in sweep.points)
        plan = self.predictor.configuration
        planned = Planned(
            file=str(self.file),
            model=plan.model,
            system=plan.system,
            backend=plan.backend,
            version=plan.version,
            split=plan.name,
            calibrated=self.calibrated,
            notes=(*self.predictor.notes, *self.problems),
        )
        return replace(sweep, points=points, plan=planned)

    def _figures(self, sweep: Sweep, point: Point) -> dict[str, float]:
        """Return the figures of one point, of requests as long as those that were measured."""
        figures = point.figures
        if point.broken:
            return {}
        isl, osl = (
            round(figures[f"total_{name}_tokens"] / figures["completed"]) for name in ("input", "output")
        )
        ask = (
            self.predictor.at_concurrency if sweep.question.kind == "concurrency" else self.predictor.at_rate
        )
        try:
            found = ask(point.level, isl=isl or sweep.question.input_tokens, osl=osl)
        except AegisError as error:  # of these lengths; what was measured is kept all the same
            self.problems[error.message] = None
            return {}
        if found is None:
            return {}
        requests = found.requests_per_s * len(sweep.question.servers)
        return {
            "concurrency": found.concurrency,
            "prefill_share": found.prefill_share,
            "request_throughput": requests,
            "output_throughput": requests * osl,
            "mean_ttft_ms": found.ttft,
            "mean_tpot_ms": found.tpot,
            "mean_e2el_ms": found.latency,
        }
