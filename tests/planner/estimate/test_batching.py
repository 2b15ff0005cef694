"""The simulation of continuous batching: where it can be reckoned by hand, and against what a plan says."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from aegis.planner.estimate.aggregated import host_time, rates
from aegis.planner.estimate.batching import Engine, TabulatedTimes, simulate
from aegis.planner.estimator import AIC_012, MECHANISM, Estimator
from aegis.planner.plan import plan
from aegis.planner.problem import Backend, Load, Mtp, Parallel, Quantization
from aegis.planner.solve import Parts
from tests.planner.estimate.built import built
from tests.planner.estimate.fakes import worker

LOAD = Load(isl=100, osl=11)


class Constant:
    """10 ms with prompts, 1 ms without."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def mixed(self, chunk: int, requests: int) -> float:
        self.steps.append((chunk, requests))
        return 10.0

    def decode(self, requests: int, length: float) -> float:
        self.steps.append((0, requests))
        assert LOAD.isl < length < LOAD.isl + LOAD.osl
        return 1.0


def test_one_user_is_read_and_answered_in_turn() -> None:
    seen = simulate(Engine(users=1, context_tokens=100, requests=3), Constant(), LOAD)
    assert (seen.ttft, seen.tpot) == (10, 1)
    assert seen.requests_per_s == pytest.approx(1000 / 20)
    assert seen.mixed_share == pytest.approx(1 / 11)


def test_a_long_prompt_is_read_in_chunks() -> None:
    times = Constant()
    seen = simulate(Engine(users=1, context_tokens=40, requests=1), times, LOAD)
    assert seen.ttft == 30
    assert [chunk for chunk, _ in times.steps if chunk] == [40, 40, 20]


def test_chunks_are_filled_with_the_next_prompt_and_whole_prompts_wait() -> None:
    cut, whole = Constant(), Constant()
    simulate(Engine(users=3, context_tokens=150, requests=1), cut, LOAD)
    simulate(Engine(users=3, context_tokens=150, requests=1, chunked=False), whole, LOAD)
    assert [chunk for chunk, _ in cut.steps if chunk][:2] == [150, 150]
    assert [chunk for chunk, _ in whole.steps if chunk][:3] == [100, 100, 100]


def test_users_who_start_at_once_wait_for_each_other() -> None:
    seen = simulate(Engine(users=4, context_tokens=100, requests=1), Constant(), LOAD)
    assert seen.ttft == pytest.approx((10 + 20 + 30 + 40) / 4)


def test_running_requests_wait_for_the_prompts_of_others() -> None:
    seen = simulate(Engine(users=2, context_tokens=100, requests=40, warm_up=10), Constant(), LOAD)
    # of its ten steps, one reads the other's prompt
    assert seen.tpot == pytest.approx((9 * 1 + 10) / 10)


def test_requests_that_come_too_fast_wait_for_all_before_them() -> None:
    seen = simulate(Engine(users=50, context_tokens=100, requests=20, warm_up=5), Constant(), LOAD)
    # a prompt a step: 100 requests/s; Little's law
    assert seen.requests_per_s == pytest.approx(100, rel=0.01)
    assert seen.ttft == pytest.approx(50 * 10 - 10 * 10, rel=0.02)
    assert seen.mixed_share == pytest.approx(1, abs=0.02)


def test_a_pause_makes_a_request_miss_a_step() -> None:
    at_once = simulate(Engine(users=2, context_tokens=100, requests=30, warm_up=5), Constant(), LOAD)
    paused = simulate(
        Engine(users=2, context_tokens=100, requests=30, warm_up=5, turnaround=0.25), Constant(), LOAD
    )
    assert at_once.ttft == pytest.approx(10)
    # the first waits for the last step of the other, who then waits while the first one is read
    assert paused.ttft == pytest.approx(((0.75 + 10) + (9.75 + 10)) / 2)


def test_a_step_may_add_several_tokens() -> None:
    seen = simulate(Engine(users=1, context_tokens=100, requests=1, progress=2.0), Constant(), LOAD)
    assert seen.tpot == pytest.approx(0.5)


def test_the_same_seed_gives_the_same() -> None:
    engine = Engine(users=8, context_tokens=100, spread=0.5, turnaround=1)
    assert simulate(engine, Constant(), LOAD) == simulate(engine, Constant(), LOAD)
    assert simulate(engine._replace(seed=1), Constant(), LOAD) != simulate(engine, Constant(), LOAD)


@pytest.mark.parametrize("chunk", [1000, 3000, 700])
def test_tabulated_steps_are_those_of_the_worker(chunk: int) -> None:
    one, load = worker(), Load(isl=1000, osl=101)
    times = TabulatedTimes(one, load, users=20, context_tokens=chunk)
    assert times.mixed(chunk, 13) == pytest.approx(float(one.mixed(chunk, 13, load)))
    assert times.decode(13, 1051) == pytest.approx(float(one.decode(13, 1051)))


FORMATS = Quantization(gemm="fp8_block", moe="fp8_block", kv_cache="fp8", fmha="fp8")
POINTS = [
    (load, users, chunk)
    for load in (Load(isl=3000, osl=512), Load(isl=1000, osl=1000), Load(isl=4000, osl=100))
    for users in (4, 16, 64, 128)
    for chunk in (512, load.isl, 2 * load.isl)
]


def held_against_simulation(estimator: Estimator) -> tuple[list[float], list[float], list[float]]:
    """Relative errors of TTFT, TPOT and throughput of a plan."""
    one = built(
        "Qwen/Qwen3-32B-FP8",
        Parallel(tp=4),
        FORMATS,
        system="h200_sxm",
        backend="trtllm",
        estimator=estimator,
    )
    away: list[list[float]] = [[], [], []]
    for load, users, chunk in POINTS:
        if chunk // load.isl >= users:
            continue
        times = TabulatedTimes(one, load, users=users, context_tokens=chunk)
        # The next request comes early in the step after an answer.
        engine = Engine(users, chunk, chunked=chunk < load.isl, turnaround=0.1, spread=0.1)
        seen = simulate(engine, times, load)
        for column, value, wanted in zip(away, rates(one, load, users, chunk), seen, strict=False):
            column.append(abs(float(value[0]) / wanted - 1))
    return away[0], away[1], away[2]


def test_time_per_token_and_throughput_of_a_plan_are_those_of_the_simulation() -> None:
    _, tpot, rate = held_against_simulation(AIC_012)
    assert median(tpot) < 0.02
    assert median(rate) < 0.03


def test_a_plan_by_events_has_what_the_simulation_has() -> None:
    of_rules = held_against_simulation(AIC_012)
    by_events = held_against_simulation(Estimator("by events", "current", frozenset({"continuous-batching"})))
    for away, before, typical, most in zip(
        by_events, of_rules, (0.02, 0.005, 0.005), (0.1, 0.03, 0.02), strict=True
    ):
        assert median(away) < typical < median(before)
        assert max(away) < most < max(before)


@pytest.mark.parametrize("backend", ["trtllm", "vllm", "sglang"])
@pytest.mark.parametrize(
    ("isl", "osl", "tpot"), [(3000, 512, 20), (1000, 1000, 30), (4000, 100, 50), (500, 250, 15)]
)
def test_a_chosen_configuration_delivers_what_is_planned(
    backend: Backend, isl: int, osl: int, tpot: int
) -> None:
    """Steps are as measured, with the host's time in them; what measured deployments leave over is no matter of batching."""
    asked: dict[str, Any] = {"backend": backend, "isl": isl, "osl": osl, "tpot": tpot, "ttft": 2000}
    found = plan("QWEN3_32B", 32, "h200_sxm", estimator=MECHANISM, **asked)
    experiment, best = next(
        (experiment, answer.best[0])
        for experiment, answer in zip(found.experiments, found.answers, strict=True)
        if answer.mode == "agg"
    )
    (chosen,) = best.workers
    ((search,),) = experiment.searches
    one = Parts().workers(replace(search, splits=(chosen.parallel,)), experiment)[0]
    times = TabulatedTimes(one, experiment.load, users=chosen.batch, context_tokens=best.context_tokens)
    seen = simulate(
        Engine(chosen.batch, best.context_tokens, turnaround=0.1, spread=0.1), times, experiment.load
    )
    host = host_time(one, one.decode(np.array([chosen.batch]), isl + osl // 2 + 1))
    assert one.host.step > 0
    assert best.tpot == pytest.approx(seen.tpot, rel=0.02)
    assert best.ttft == pytest.approx(seen.ttft + float(host[0]), rel=0.1)
    cycle = best.ttft + best.tpot * (osl - 1)
    assert best.requests_per_s == pytest.approx(1000 * best.concurrency / cycle, abs=1e-3)


def test_drafting_shortens_answers_in_the_simulation_as_in_the_plan() -> None:
    load = Load(isl=1000, osl=400)
    drafting = worker(mtp=Mtp(drafted=1, accept_rates=(0.8,)))
    times = TabulatedTimes(drafting, load, users=8, context_tokens=1000)
    seen = simulate(Engine(8, 1000, progress=drafting.progress), times, load)
    assert seen.tpot == pytest.approx(float(rates(drafting, load, 8, 1000).tpot[0]), rel=0.03)
