"""The aggregated sweep: against trying point after point, and against recorded answers."""

from __future__ import annotations

import gzip
import json
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.planner.estimator import AIC_012, CORRECTED, GUIDE, Estimator
from aegis.planner.models.limits import SplitError
from aegis.planner.models.resolve import find_model
from aegis.planner.operations import GenerationAttention
from aegis.planner.problem import Load, Mtp, Parallel, Quantization, Targets, Tuning
from aegis.planner.search.agg import BATCHES, sweep_agg
from aegis.planner.search.context_tokens import context_tokens
from aegis.planner.search.pick import pick
from aegis.planner.search.targets import TPOTS
from aegis.planner.systems import load_system
from tests.planner.estimate.built import built
from tests.planner.estimate.fakes import Reckoned, graph, system, worker
from tests.planner.models.chosen import default_splits

if TYPE_CHECKING:
    from aegis.planner.estimate.worker import Worker

GRID = Path(__file__).parents[2] / "fixtures" / "aiconfigurator" / "grid-0.12.0.json.gz"
SMALL = system(memory_capacity=24 * 2**30)
# Attention this wide makes the chunk of a step matter for memory.
WIDE = graph(attention_width=2**15)


class Point(NamedTuple):
    batch: int
    chunk: int
    ttft: float
    tpot: float
    requests_per_s: float


def delivered(one: Worker, load: Load, batch: int, chunk: int) -> Point:
    """What one point delivers, in scalars: planner-model, section 6."""
    isl, osl = load.isl, load.osl
    guide, vllm = one.place.guide, one.backend == "vllm" and not one.place.guide
    reading, prompts = math.ceil(isl * batch / chunk), math.ceil(chunk / isl)
    if batch == 1:
        mixed, generating, decoding, counted = 1, 0, osl - 1, 0
    elif reading >= osl:
        generating = batch - prompts if vllm else int(batch // (reading / osl))
        mixed, decoding, counted = reading, 0, reading
    else:
        generating = batch - prompts
        mixed, decoding, counted = reading, osl - reading, reading if vllm else max(1, reading - 3)
    mix = float(one.mixed(chunk, max(1, generating) if batch > 1 else 0, load))
    step = float(one.decode(batch, isl + osl // 2 + 1))
    tpot = (mix * counted + step * decoding) / (counted + decoding)
    ttft = mix * math.ceil(isl / chunk)
    if vllm:
        ttft = (ttft + 0.8 * one.graph.layers) * min(1 + math.log2(batch) / 8, 2)
    elif not guide:
        ttft *= min(2 + (reading - 3) / 20, 4)
    rate = 1000 * batch / (mixed * mix + decoding * step)
    if vllm:
        rate = min(rate, 1000 * batch / (ttft + tpot * (osl - 1)))
    return Point(batch, chunk, ttft, tpot, rate * one.split.pp * one.split.dp)


def one_by_one(
    one: Worker, load: Load, ttft: float, *, chunked: bool
) -> dict[tuple[int, int], tuple[float, ...]]:
    """Try point after point, and keep the best ten of every target."""
    seen: list[float] = []
    points: list[Point] = []
    for batch in BATCHES.tolist():
        for chunk in context_tokens(load.isl, rules=one.estimator.rules, chunked=chunked).tolist():
            left = batch - math.ceil(chunk / load.isl)
            if left < 0 or (batch > 1 and left < 1):
                break
            balance = load.isl * batch / chunk / load.osl
            if balance > 1:
                generating = batch // balance
                if generating > 1 and generating in seen:
                    continue
                seen.append(generating)
            if not one.room(load, Tuning(), role="agg", batch=batch, context_tokens=chunk)[1]:
                break
            points.append(delivered(one, load, batch, chunk))
    kept: dict[tuple[int, int], tuple[float, ...]] = {}
    for tpot in TPOTS:
        meeting = [each for each in points if each.ttft <= ttft and each.tpot <= tpot]
        meeting.sort(key=lambda each: -round(each.requests_per_s, 3))
        kept |= {(each.batch, each.chunk): each[2:] for each in meeting[:10]}
    return kept


@settings(max_examples=8, deadline=None)
@given(
    isl=st.integers(1, 9000),
    osl=st.integers(2, 900),
    backend=st.sampled_from(["trtllm", "vllm", "sglang"]),
    estimator=st.sampled_from([GUIDE, AIC_012]),
    split=st.sampled_from([Parallel(), Parallel(tp=2, pp=2), Parallel(dp=2, moe_ep=2)]),
    chunked=st.booleans(),
    ttft=st.sampled_from([20.0, 200.0, math.inf]),
)
def test_a_sweep_keeps_what_trying_point_after_point_keeps(
    isl: int, osl: int, backend: str, estimator: Estimator, split: Parallel, *, chunked: bool, ttft: float
) -> None:
    load = Load(isl=isl, osl=osl)
    if estimator is GUIDE:
        backend = "trtllm"
    one = worker(WIDE, on=Reckoned(SMALL), backend=backend, estimator=estimator, split=split)
    tuning = Tuning(chunked_prefill=chunked)
    swept = sweep_agg([one], load, Targets(ttft=ttft), tuning, estimator)
    have = {
        (each.workers[0].batch, each.context_tokens): (each.ttft, each.tpot, each.requests_per_s)
        for each in swept
    }
    assert len(have) == len(swept)
    wanted = one_by_one(one, load, ttft, chunked=chunked)
    # equal rates and rounded edges of targets may be taken one way or the other
    assert len(have.keys() ^ wanted.keys()) <= 2
    for key in have.keys() & wanted.keys():
        assert have[key] == pytest.approx(wanted[key], abs=2e-3)


def test_what_is_shown_belongs_together() -> None:
    load = Load(isl=1000, osl=101)
    split = Parallel(tp=2, pp=2, dp=2, moe_tp=4)
    (one, *_), counted = sweep_agg([worker(split=split)], load, Targets(), Tuning(), AIC_012), load.osl - 1
    held = one.workers[0]
    assert (held.role, held.system, held.parallel, one.mode) == ("agg", "small", split, "agg")
    assert one.concurrency == held.batch * 4
    assert one.gpus == 8
    assert one.request_latency == pytest.approx(one.ttft + one.tpot * 100, abs=2e-3 * 100)
    assert one.tokens_per_s == pytest.approx(one.requests_per_s * counted, rel=1e-3)
    assert one.tokens_per_s_gpu == pytest.approx(one.tokens_per_s / 8, abs=1e-3)
    assert one.tokens_per_s_user == pytest.approx(1000 / one.tpot, rel=1e-3)
    assert held.requests_per_s == one.requests_per_s


def test_candidates_come_best_first_and_meet_the_target() -> None:
    found = sweep_agg(
        [worker(), worker(split=Parallel(tp=2))], Load(isl=500, osl=200), Targets(ttft=30), Tuning(), AIC_012
    )
    throughput = [each.tokens_per_s_gpu for each in found]
    assert throughput == sorted(throughput, reverse=True)
    assert all(each.ttft <= 30 for each in found)


def test_the_time_of_a_whole_request_may_be_the_target() -> None:
    targets = Targets(request_latency=1000)
    load = Load(isl=500, osl=200)
    found = sweep_agg([worker()], load, targets, Tuning(), AIC_012)
    assert found
    assert all(each.request_latency <= 1000 for each in found)


def test_a_worker_without_tables_is_left_out_with_the_reason() -> None:
    reasons: list[str] = []
    workers = [worker(on=Reckoned(lacks=GenerationAttention), split=Parallel(tp=4)), worker()]
    found = sweep_agg(workers, Load(isl=500, osl=200), Targets(), Tuning(), AIC_012, left_out=reasons)
    assert {each.workers[0].parallel for each in found} == {Parallel()}
    assert reasons == ["small trtllm tp 4: no generation_attention"]


def test_a_worker_that_does_not_fit_has_no_candidates() -> None:
    tiny = worker(on=Reckoned(system(memory_capacity=2**30)))
    assert sweep_agg([tiny], Load(isl=500, osl=200), Targets(), Tuning(), AIC_012) == []


@pytest.mark.parametrize("osl", [1, 2])
@pytest.mark.parametrize("estimator", [GUIDE, AIC_012, CORRECTED])
def test_answers_of_one_token_are_served(osl: int, estimator: Estimator) -> None:
    found = sweep_agg([worker(estimator=estimator)], Load(isl=900, osl=osl), Targets(), Tuning(), estimator)
    assert found
    assert all(each.requests_per_s > 0 for each in found)
    if osl == 1 and estimator is CORRECTED:
        assert all(each.tokens_per_s == each.requests_per_s for each in found)


def test_drafting_sweeps_more_points_since_no_two_are_alike() -> None:
    load = Load(isl=4000, osl=40)
    plain = sweep_agg([worker()], load, Targets(), Tuning(), AIC_012)
    drafting = worker(mtp=Mtp(drafted=1, accept_rates=(0.8,)))
    more = sweep_agg([drafting], load, Targets(), Tuning(), AIC_012)
    assert max(each.workers[0].batch for each in more) > max(each.workers[0].batch for each in plain)


@pytest.mark.parametrize(
    ("isl", "rules", "chunked", "sizes"),
    [
        (3000, "current", False, [3000, 6000, 9000]),
        (3000, "current", True, [*range(512, 8193, 512), 3000, 6000]),
        (3000, "guide", False, [*range(512, 8193, 512), 3000, 6000]),
        (128, "current", False, [128, 256, *range(512, 8193, 512)]),
        (32000, "current", False, [32000, 64000]),
        (20000, "guide", False, [*range(512, 8193, 512), *range(13192, 40001, 5000), 20000, 40000]),
    ],
)
def test_chunks_grow_in_steps_or_by_whole_prompts(
    isl: int, rules: Any, chunked: bool, sizes: list[int]
) -> None:
    found = context_tokens(isl, rules=rules, chunked=chunked).tolist()
    assert found == sorted({each for each in sizes if each <= max(8192, 2 * isl)})


@cache
def recorded() -> tuple[dict[str, Any], ...]:
    with gzip.open(GRID) as file:
        return tuple(each for each in json.load(file)["cases"] if each.get("best", {}).get("agg"))


def workers_of(args: dict[str, Any], row: dict[str, Any]) -> list[Worker]:
    formats = Quantization(gemm=row["gemm"], moe=row["moe"], kv_cache=row["kvcache"], fmha=row["fmha"])
    splits = default_splits(
        find_model(args["model_path"]),
        system=load_system(args["system"]),
        backend=row["backend"],
        total_gpus=args["total_gpus"],
    )
    found: list[Worker] = []
    for split in splits:
        try:
            found.append(
                built(
                    args["model_path"],
                    split,
                    formats,
                    system=args["system"],
                    backend=row["backend"],
                    version=row["version"],
                )
            )
        except SplitError:
            continue
    return found


@pytest.mark.parametrize("case", recorded(), ids=lambda case: case["id"])
def test_the_best_are_those_that_were_recorded(case: dict[str, Any]) -> None:
    args, rows = case["args"], case["best"]["agg"]
    if "database_mode" in args or case["id"] == "C_dsv3_h200_sxm_sglang":
        pytest.skip("measured tables alone, and experts over one node: see test_plan.py")
    load = Load(isl=args["isl"], osl=args["osl"], prefix=args.get("prefix", 0))
    targets = Targets(ttft=args["ttft"], tpot=args["tpot"], request_latency=args.get("request_latency"))
    tuning = Tuning(free_memory_fraction=args.get("free_gpu_memory_fraction"))
    found = sweep_agg(workers_of(args, rows[0]), load, targets, tuning, AIC_012)
    total = args["total_gpus"]
    best = pick(found, total_gpus=total, targets=targets, rules="current", top_n=100).best
    assert best[0].cluster_throughput(total) == pytest.approx(rows[0]["tokens/s/gpu_cluster"], rel=1e-3)
    assert best[0].workers[0].parallel == split_of(rows[0])
    by_split = {each.workers[0].parallel: each for each in best}
    for row in rows:
        if (have := by_split.get(split_of(row))) is None:
            assert row["moe_ep"] > 8  # experts over several nodes: measured by tables of their own
            continue
        assert have.workers[0].memory == pytest.approx(row["memory"], abs=1.0)
        # which points are alike, and so which one is shown, hangs on the last digits of the tables
        assert have.cluster_throughput(total) == pytest.approx(row["tokens/s/gpu_cluster"], rel=1e-2)


def split_of(row: dict[str, Any]) -> Parallel:
    return Parallel(**{name: row[name] for name in ("tp", "pp", "dp", "moe_tp", "moe_ep", "cp")})
