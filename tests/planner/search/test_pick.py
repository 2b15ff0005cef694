from __future__ import annotations

from aegis.planner.answer import Candidate, Workers
from aegis.planner.problem import Parallel, Quantization, Targets
from aegis.planner.search.pick import pick

PLAIN = Quantization(gemm="bfloat16", moe="bfloat16", kv_cache="bfloat16", fmha="bfloat16")


def candidate(tp: int, *, throughput: float, tpot: float, latency: float = 1000.0) -> Candidate:
    worker = Workers(
        role="agg",
        system="h200_sxm",
        backend="vllm",
        version="1",
        parallel=Parallel(tp=tp),
        quantization=PLAIN,
        batch=8,
        memory=50.0,
        requests_per_s=1.0,
    )
    return Candidate(
        mode="agg",
        workers=(worker,),
        ttft=100.0,
        tpot=tpot,
        request_latency=latency,
        concurrency=8,
        requests_per_s=1.0,
        tokens_per_s=throughput * tp,
        tokens_per_s_gpu=throughput,
        tokens_per_s_user=1000 / tpot,
    )


SLOW = candidate(1, throughput=900, tpot=30)
FAST = candidate(2, throughput=500, tpot=10)
FASTER = candidate(2, throughput=400, tpot=8)
EVERY = (SLOW, FAST, FASTER)


def test_the_best_of_each_split_that_meets_the_target_is_shown() -> None:
    picked = pick(EVERY, total_gpus=8, targets=Targets(tpot=20), rules="current")
    assert picked == ((FAST,), True)


def test_the_guide_shows_every_point_of_the_frontier() -> None:
    assert pick(EVERY, total_gpus=8, targets=Targets(tpot=20), rules="guide").best == (FAST, FASTER)


def test_gpus_that_are_left_over_count_against_a_split() -> None:
    three = candidate(3, throughput=600, tpot=10)
    picked = pick((three, FAST), total_gpus=5, targets=Targets(), rules="current")
    assert picked.best == (FAST, three)  # 4 of 5 GPUs at 500 are more than 3 of 5 at 600


def test_where_nothing_meets_the_target_the_nearest_are_shown_and_said_to_miss_it() -> None:
    assert pick(EVERY, total_gpus=8, targets=Targets(tpot=1), rules="current") == ((FAST, SLOW), False)
    assert pick(EVERY, total_gpus=8, targets=Targets(tpot=1, strict=True), rules="current") == ((), False)
    assert pick(EVERY, total_gpus=8, targets=Targets(tpot=1), rules="guide") == ((), False)


def test_a_request_latency_replaces_the_time_per_token() -> None:
    late = candidate(4, throughput=2000, tpot=5, latency=9000)
    picked = pick(
        (*EVERY, late), total_gpus=8, targets=Targets(tpot=1, request_latency=2000), rules="current"
    )
    assert picked.best == (SLOW, FAST)


def test_a_split_that_is_larger_than_all_gpus_is_none() -> None:
    assert pick(EVERY, total_gpus=1, targets=Targets(), rules="current").best == (SLOW,)
