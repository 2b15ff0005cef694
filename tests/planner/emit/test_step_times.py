"""Step times of a plan as a small table, and what the simulated engine makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from aegis.engines.simulator.steps import milliseconds
from aegis.planner.emit.step_times import step_times
from aegis.planner.estimate.batching import Engine, simulate
from aegis.planner.estimator import CORRECTED, MECHANISM, PLAIN, Estimator
from aegis.planner.plan import plan
from aegis.planner.problem import Load, WorkerSearch
from aegis.planner.solve import Parts
from aegis.spec.step_times import StepTimes

if TYPE_CHECKING:
    from aegis.planner.answer import Candidate
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.problem import Backend

LOAD = Load(isl=3000, osl=512)


class Tabulated:
    """Steps as the file says them."""

    def __init__(self, times: StepTimes) -> None:
        self.times = times

    def mixed(self, chunk: int, requests: int) -> float:
        return milliseconds(self.times, chunk, requests, self.times.decode_length)

    def decode(self, requests: int, length: float) -> float:
        return milliseconds(self.times, 0, requests, length)


def planned(estimator: Estimator, backend: Backend = "vllm") -> tuple[Candidate, Worker]:
    answered = plan(
        "QWEN3_32B", 32, "h200_sxm", backend=backend, isl=3000, osl=512, tpot=20, estimator=estimator
    )
    index = next(index for index, each in enumerate(answered.answers) if each.mode == "agg")
    best = answered.answers[index].best[0]
    chosen = best.workers[0]
    search = WorkerSearch(
        system=chosen.system,
        backend=backend,
        version=chosen.version,
        quantization=chosen.quantization,
        splits=(chosen.parallel,),
    )
    return best, Parts().workers(search, answered.experiments[index])[0]


@pytest.fixture(scope="module")
def worker() -> Worker:
    return planned(MECHANISM)[1]


def test_the_table_says_what_the_worker_says(worker: Worker) -> None:
    times = step_times(worker, LOAD, requests=48, context_tokens=6000)
    assert times.context_tokens == 6000
    assert times.decode_length == 3000 + 256 + 1
    for tokens in (375, 1000, 3000, 6000):
        for running in (0, 1, 32, 48):
            mixed = float(worker.mixed(tokens, running, LOAD))
            assert milliseconds(times, tokens, running, times.decode_length) == pytest.approx(mixed, abs=1e-4)
    for running in (1, 16, 48):
        for length in (1500, 3000, 3512):
            assert milliseconds(times, 0, running, length) == pytest.approx(
                float(worker.decode(running, length)), abs=1e-4
            )


def test_between_its_points_it_is_near() -> None:
    """Measured attention over prompts may weigh far more; where another prompt begins the worker's time then leaps."""
    _, worker = planned(PLAIN)
    times = step_times(worker, LOAD, requests=48, context_tokens=6000)
    running, lengths = np.array([3, 11, 29, 41]), np.array([3100, 3300, 3400, 3500])
    for batch, length in zip(running.tolist(), lengths.tolist(), strict=True):
        wanted = float(worker.decode(batch, length))
        assert milliseconds(times, 0, batch, length) == pytest.approx(wanted, rel=0.04)
    for tokens in (600, 2200, 4500):
        wanted = float(worker.mixed(tokens, 20, LOAD))
        assert milliseconds(times, tokens, 20, times.decode_length) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("backend", ["trtllm", "vllm", "sglang"])
def test_tokens_come_as_often_as_is_planned(backend: Backend) -> None:
    best, worker = planned(CORRECTED, backend)
    assert worker.residual is not None
    batch = best.workers[0].batch
    times = step_times(worker, LOAD, requests=batch, context_tokens=best.context_tokens)
    engine = Engine(batch, best.context_tokens, turnaround=0.1, spread=0.1)  # as a plan takes users
    assert simulate(engine, Tabulated(times), LOAD).tpot == pytest.approx(best.tpot, rel=0.03)


def test_cached_tokens_are_not_prefilled(worker: Worker) -> None:
    load = Load(isl=3000, osl=512, prefix=1500)
    times = step_times(worker, load, requests=8, context_tokens=6000)
    assert times.context_tokens == 3000
    assert milliseconds(times, 1500, 0, 0) == pytest.approx(float(worker.mixed(3000, 0, load)), abs=1e-4)


def test_the_file_is_small_and_comes_back(worker: Worker) -> None:
    times = step_times(worker, LOAD, requests=512, context_tokens=16384, source="it's $(x)\n")
    text = msgspec.json.encode(times)
    assert len(text) < 20_000
    assert msgspec.json.decode(text, type=StepTimes) == times
