"""Each correction of the estimator: what it changes, and that what is measured or simulated agrees with it better.

Those of waiting are held against simulations in estimate/test_batching.py and estimate/test_queueing.py.
"""

from __future__ import annotations

import gzip
import json
import re
from functools import cache
from math import log
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from msgspec.structs import replace

from aegis.planner.estimate.aggregated import rates, whole_requests
from aegis.planner.estimate.closed_loop import Times, further, ttft, turns
from aegis.planner.estimate.host import Host
from aegis.planner.estimator import AIC_012, CORRECTED, CORRECTIONS, GUIDE, Estimator
from aegis.planner.models.limits import SplitError
from aegis.planner.operations import NoData
from aegis.planner.problem import Load, Parallel, Quantization, Replica, Targets, Tuning
from aegis.planner.search.agg import sureness, sweep_agg
from aegis.planner.search.disagg import sweep_disagg
from aegis.planner.silicon import fit
from aegis.planner.silicon.fitted import fitted
from aegis.planner.silicon.predict import predict
from aegis.planner.single import Asked, kinds, worker_of
from aegis.planner.task import WorkerQuestion
from tests.planner.estimate.built import built
from tests.planner.estimate.fakes import worker

if TYPE_CHECKING:
    from aegis.planner.answer import Candidate
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.operations import Kind
    from aegis.planner.silicon.deployments import Deployment

MEASURED = Path(__file__).parents[1] / "fixtures" / "aiconfigurator" / "measured-serving.json.gz"
LOAD = Load(isl=1000, osl=201)


def only(*names: str) -> Estimator:
    return Estimator("one", "current", frozenset(names))


def deepseek(estimator: Estimator) -> Worker:
    return built(
        "deepseek-ai/DeepSeek-V3",
        Parallel(tp=8, moe_ep=8),
        Quantization(gemm="fp8_block", moe="fp8_block", kv_cache="fp8", fmha="bfloat16"),
        system="h200_sxm",
        backend="sglang",
        estimator=estimator,
    )


def test_every_correction_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in CORRECTIONS if not re.search(f'only\\("{name}', text)} == set()


def test_only_the_corrected_estimator_has_corrections() -> None:
    assert CORRECTED.corrections == set(CORRECTIONS)
    assert not AIC_012.corrections | GUIDE.corrections


@pytest.mark.parametrize(("chunk", "isl", "requests"), [(8192, 1024, 100), (3000, 3000, 23)])
def test_a_fused_latent_block_costs_its_chunks_and_its_decodes(chunk: int, isl: int, requests: int) -> None:
    load = Load(isl=isl, osl=512)
    one = deepseek(only("mla-in-mixed-steps"))
    mixed = one.breakdown("mixed", load, batch=requests, context_tokens=chunk)
    read = one.breakdown("prefill", load, batch=chunk // isl)
    decoded = one.breakdown("decode", load, batch=requests)
    attention = [name for name in mixed if "attention" in name or "mla" in name or "bmm" in name]
    assert attention
    for name in attention:
        assert mixed[name] == pytest.approx(read.get(name, 0) + decoded.get(name, 0))
    flawed = float(deepseek(AIC_012).mixed(chunk, requests, load))
    corrected = float(one.mixed(chunk, requests, load))
    # one sequence of all tokens costs too much where prompts are short, and leaves out what decodes where not
    assert (flawed > corrected) is (chunk > isl)
    assert abs(flawed / corrected - 1) > 0.03


def test_a_prefill_of_experts_samples_a_token_too() -> None:
    formats = Quantization(gemm="fp8_block", moe="fp8_block", kv_cache="fp8", fmha="fp8")

    def parts(estimator: Estimator) -> dict[str, float]:
        one = built(
            "Qwen/Qwen3-235B-A22B-FP8",
            Parallel(tp=4, moe_ep=4),
            formats,
            system="h200_sxm",
            backend="trtllm",
            estimator=estimator,
        )
        return one.breakdown("prefill", LOAD, batch=1)

    more = parts(only("logits-in-prefill")).items() - parts(AIC_012).items()
    assert [name for name, _ in more] == ["context_logits_gemm"]
    assert all(time > 0 for _, time in more)


def test_norms_and_casts_around_attention_grow_with_the_tokens() -> None:
    formats = Quantization(gemm="fp8_block", moe="fp8_block", kv_cache="fp8", fmha="fp8")

    def attention(estimator: Estimator, isl: int) -> float:
        one = built(
            "Qwen/Qwen3-32B-FP8",
            Parallel(tp=4),
            formats,
            system="h200_sxm",
            backend="trtllm",
            estimator=estimator,
        )
        return one.breakdown("prefill", Load(isl=isl, osl=2), batch=1)["context_attention"]

    per_token = only("attention-extras-per-token")
    short, long = (attention(per_token, isl) - attention(AIC_012, isl) for isl in (1024, 8192))
    assert 0 < short < long
    assert long / short == pytest.approx(8, rel=0.1)


def replicas(estimator: Estimator) -> list[Candidate]:
    workers = [worker(estimator=estimator)]
    return sweep_disagg(
        workers,
        workers,
        load=LOAD,
        targets=Targets(),
        replica=Replica(),
        tuning=Tuning(),
        estimator=estimator,
        total_gpus=16,
    )


def test_the_cache_travels_before_the_answer_goes_on() -> None:
    plain, moved = (sorted(each.ttft for each in replicas(it)) for it in (AIC_012, only("kv-transfer")))
    travel = worker().kv_transfer(LOAD)
    assert travel > 0
    assert moved == pytest.approx([ttft + travel for ttft in plain], abs=2e-3)


def test_requests_wait_for_a_prefill_worker_as_long_as_it_is_busy() -> None:
    plain, waiting = replicas(AIC_012), replicas(only("prefill-queueing"))
    prefill = float(worker().prefill(1, LOAD.isl)) * 1.1
    assert [each.ttft for each in plain] == pytest.approx([1.8 * prefill] * len(plain), abs=2e-3)
    assert all(each.ttft >= prefill - 2e-3 for each in waiting)
    assert len({each.ttft for each in waiting}) > 1


def test_users_of_a_replica_are_the_requests_that_its_rate_keeps_under_way() -> None:
    plain, in_use = replicas(AIC_012), replicas(only("decode-slots-in-use"))
    slots = {each.workers: each.concurrency for each in plain}
    for each in in_use:
        under_way = each.requests_per_s * each.request_latency / 1000
        assert each.concurrency == pytest.approx(min(max(under_way, 1), slots[each.workers]), abs=0.51)
    assert any(each.concurrency < slots[each.workers] for each in in_use)


def test_waiting_and_steps_with_prompts_follow_from_the_events_of_a_closed_loop() -> None:
    one, batch, chunk = worker(estimator=only("continuous-batching")), np.array([4]), np.array([LOAD.isl])
    found = rates(one, LOAD, batch, chunk)
    of = turns(batch, chunk, isl=LOAD.isl, steps=LOAD.osl - 1)
    mixed, first = (
        one.mixed(LOAD.isl, whole_requests(batch, requests), LOAD) for requests in (of.running, of.started)
    )
    times = Times(first, mixed, mixed, one.decode(4, LOAD.isl + LOAD.osl // 2 + 1))
    assert (found.ttft, found.tpot) == (ttft(of, times), further(of, times))
    whole = found.ttft + found.tpot * (LOAD.osl - 1)
    assert found.requests_per_s == pytest.approx(4000 / whole)  # Little's law
    assert found.ttft < rates(worker(estimator=AIC_012), LOAD, batch, chunk).ttft


@pytest.mark.parametrize("prefix", [0, 750, 999])
def test_steps_that_are_no_whole_prompts_cost_no_more_than_they_hold(prefix: int) -> None:
    one, load = worker(estimator=only("continuous-batching")), Load(isl=1000, osl=101, prefix=prefix)
    chunk = np.array([900, 1000, 1020, 2000])
    found = rates(one, load, np.full(4, 32), chunk)
    assert found.ttft == pytest.approx(np.full(4, found.ttft[1]), rel=0.35)
    assert found.ttft[2] == pytest.approx(found.ttft[1], rel=0.05)
    assert found.tpot == pytest.approx(np.full(4, found.tpot[1]), rel=0.1)


def test_both_modes_count_all_tokens_of_an_answer() -> None:
    estimator = only("count-output-alike")
    alone = sweep_agg([worker(estimator=estimator)], LOAD, Targets(), Tuning(), estimator)
    for each in (*alone, *replicas(estimator)):
        assert each.tokens_per_s == pytest.approx(each.requests_per_s * LOAD.osl, rel=1e-3)


def test_the_target_of_the_user_is_swept_too() -> None:
    """Between two targets of the list lie points that only the user's own keeps: ten others are faster."""
    load, targets = Load(isl=64, osl=2000), Targets(tpot=4.5)

    def best(estimator: Estimator) -> float:
        found = sweep_agg([worker(estimator=estimator)], load, targets, Tuning(), estimator)
        return max(each.requests_per_s for each in found if each.tpot <= targets.tpot)

    assert best(only("user-tpot-in-sweep")) > best(AIC_012)


def test_what_a_user_reserves_counts_with_every_engine() -> None:
    load = Load(isl=1000, osl=201, max_seq_len=8000)
    for backend in ("vllm", "sglang"):
        plain, reserved = (
            worker(backend=backend, estimator=each).memory(load, role="agg", batch=4, context_tokens=1000)
            for each in (AIC_012, only("max-seq-len-everywhere"))
        )
        assert float(reserved.kv_cache / plain.kv_cache) == pytest.approx(8000 / 1201)


def test_the_host_takes_its_time_before_a_prompt_is_scheduled() -> None:
    plain, hosted = (
        rates(worker(estimator=each), LOAD, 8, 1000) for each in (AIC_012, only("host-time-in-ttft"))
    )
    assert hosted.ttft == pytest.approx(plain.ttft + Host().first)
    assert hosted.tpot == plain.tpot


def served(estimator: Estimator) -> Worker:
    question = WorkerQuestion(model="QWEN3_32B", system="h200_sxm", backends=("vllm",))
    return worker_of(Asked(question, Parallel(tp=4), LOAD, Tuning(), estimator))


def test_operations_and_the_host_take_as_long_as_they_do_in_a_server() -> None:
    plain, hosted = served(AIC_012), served(only("steps-as-measured"))
    known = fitted().mechanism("vllm", "hopper", plain.version)
    kind: dict[str, Kind] = dict(kinds((*plain.graph.context, *plain.graph.generation)))
    steps: list[tuple[Literal["prefill", "decode"], dict[Kind, float], int]]
    steps = [("prefill", known.prefill, 0), ("decode", known.decode, 8)]
    for step, factors, requests in steps:
        alone, there = (each.breakdown(step, LOAD, batch=requests or 1) for each in (plain, hosted))
        assert there["host"] == pytest.approx(known.host.step + known.host.request * requests)
        for name in alone.keys() - {"host"}:
            assert there[name] == pytest.approx(alone[name] * factors[kind[name]])
    assert float(hosted.decode(8, 1101)) == pytest.approx(sum(there.values()))
    waiting = served(only("steps-as-measured", "host-time-in-ttft"))
    at_once = waiting.changed(host=replace(known.host, first=0.0, waits=0.0))
    late = rates(waiting, LOAD, 8, 1000).ttft - rates(at_once, LOAD, 8, 1000).ttft
    assert late == pytest.approx(known.host.first + known.host.waits * float(hosted.decode(8, 1101)))


@cache
def of_the_fit_half() -> list[Deployment]:
    """A few deployments of all engines; what was measured of the others is not looked at."""
    return [row for row in fit.rows() if row.mode == "agg"][::40]


def away(*, corrected: bool, residuals: bool) -> tuple[float, float]:
    """Median errors of TTFT and TPOT, each row predicted without what any of these rows says."""
    rows, known = of_the_fit_half(), fitted()
    own = {row.id for row in rows} if residuals else {each.id for each in known.tpot.residuals}
    ttft, tpot = (
        replace(each, residuals=tuple(left for left in each.residuals if left.id not in own))
        for each in (known.ttft, known.tpot)
    )
    found = [
        (abs(log(said.ttft / row.ttft)), abs(log(said.tpot / row.tpot)))
        for row, said in zip(
            rows, predict(rows, known=replace(known, ttft=ttft, tpot=tpot), corrected=corrected), strict=True
        )
        if not isinstance(said, str)
    ]
    assert len(found) > 30
    return median(ttft for ttft, _ in found), median(tpot for _, tpot in found)


def test_steps_as_measured_and_what_they_leave_over_come_nearer_to_what_was_measured() -> None:
    plain = away(corrected=False, residuals=False)
    steps = away(corrected=True, residuals=False)
    whole = away(corrected=True, residuals=True)
    for before, with_steps, with_rest in zip(plain, steps, whole, strict=True):
        assert with_rest < with_steps < before


def test_what_deployments_leave_over_is_a_factor_with_an_interval() -> None:
    estimator = only("deployments-as-measured", "steps-as-measured")
    one, batch = served(estimator), np.array([1, 4, 16, 64])
    assert one.residual is not None
    before, after = (rates(each, LOAD, batch, LOAD.isl) for each in (served(only("steps-as-measured")), one))
    first, further = one.residual.aggregated(one, LOAD, batch)
    assert after.ttft == pytest.approx(before.ttft * first.factor)
    assert after.tpot == pytest.approx(before.tpot * further.factor)
    whole = after.ttft + after.tpot * (LOAD.osl - 1)
    assert after.requests_per_s == pytest.approx(1000 * batch / whole)  # Little's law
    for sure in sureness(one, LOAD, batch, after.ttft, after.tpot):
        assert 0 < min(sure["ttft_spread"], sure["tpot_spread"]) < 1
        assert sure["spread"] <= max(sure["ttft_spread"], sure["tpot_spread"])
        assert sure["measured"] == further.measured


@cache
def measured() -> list[dict[str, Any]]:
    with gzip.open(MEASURED) as file:
        found: list[dict[str, Any]] = json.load(file)
    return found


@cache
def away_from_measured(estimator: Estimator) -> dict[str, list[tuple[float, float]]]:
    """Relative errors of TTFT and TPOT, by engine."""
    away: dict[str, list[tuple[float, float]]] = {"trtllm": [], "vllm": [], "sglang": []}
    for row in measured():
        sizes = {name: row[name] for name in ("tp", "pp", "dp", "moe_tp", "moe_ep")}
        formats = Quantization(**{name: row[name] for name in ("gemm", "moe", "kv_cache", "fmha")})
        try:
            one = built(
                row["model"],
                Parallel(**sizes),
                formats,
                system=row["system"],
                backend=row["backend"],
                estimator=estimator,
            )
            found = rates(one, Load(isl=row["isl"], osl=row["osl"]), row["batch"], row["isl"])
        except (NoData, SplitError):
            continue
        away[row["backend"]].append(
            (abs(float(found.ttft[0]) / row["ttft"] - 1), abs(float(found.tpot[0]) / row["tpot"] - 1))
        )
    return away


def test_experts_over_nodes_are_estimated_where_tables_may_end() -> None:
    asked = WorkerQuestion(model="deepseek-ai/DeepSeek-R1", system="gb200")
    question = Asked(asked, Parallel(tp=8, moe_ep=8), LOAD, Tuning(), AIC_012, database_mode="HYBRID")
    with pytest.raises(SplitError, match="no transport of their tokens was measured on gb200"):
        worker_of(question)
    estimator = only("reach-past-tables")
    found = [
        worker_of(question._replace(estimator=estimator, split=split)).breakdown("prefill", LOAD, batch=1)
        for split in (question.split, Parallel(tp=8, moe_tp=8))
    ]
    # tokens travel as to experts in parts; the experts themselves take less, for their pieces are larger
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"context_moe"}
    assert found[0]["context_moe"] < found[1]["context_moe"]


def test_the_time_to_the_first_token_comes_nearer_to_what_was_measured() -> None:
    before, after = (
        away_from_measured(each) for each in (AIC_012, only("continuous-batching", "host-time-in-ttft"))
    )
    for engine, rows in before.items():
        assert len(rows) > 30
        assert median(ttft for ttft, _ in after[engine]) < median(ttft for ttft, _ in rows)
