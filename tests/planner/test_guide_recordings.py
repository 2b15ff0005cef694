"""The guide's rules as a whole: plans and steps against what the tool of its time said, on the same tables."""

from __future__ import annotations

import csv
import gzip
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aegis.planner.defaults import fill
from aegis.planner.estimate.worker import Worker
from aegis.planner.estimator import GUIDE
from aegis.planner.experiments import read_questions
from aegis.planner.models.build import build_graph
from aegis.planner.models.resolve import find_model
from aegis.planner.perf.guide import GuideTables
from aegis.planner.plan import plan, run
from aegis.planner.problem import Load, Mtp, Parallel, Quantization
from aegis.planner.search.agg import Points, evaluate_points
from aegis.planner.systems import load_system
from aegis.planner.tables.store import open_tables

if TYPE_CHECKING:
    from aegis.planner.answer import Candidate, ModeAnswer

FIXTURES = Path(__file__).parents[1] / "fixtures"
SEED = FIXTURES / "aiconfigurator" / "2025-seed"
CASES = {"qwen32b_seed": 32, "qwen32b_default": 32, "pertensor": 16}


@cache
def answers(case: str) -> dict[str, ModeAnswer]:
    if case == "qwen32b_seed":
        found = plan("QWEN3_32B", 32, "h200_sxm", isl=3000, osl=512, ttft=1000, tpot=10, estimator=GUIDE)
    elif case == "qwen32b_default":
        found = plan("QWEN3_32B", 32, "h200_sxm", estimator=GUIDE)
    else:
        file = FIXTURES / "planner" / "experiments" / "qwen3_32b_disagg_pertensor.yaml"
        found = run(fill(read_questions(file, estimator=GUIDE)))
    return {each.name: each for each in found.answers}


def recorded(case: str, file: str) -> list[tuple[ModeAnswer, list[dict[str, str]]]]:
    pairs = []
    for mode in sorted(path.name for path in (SEED / case).iterdir()):
        rows = list(csv.DictReader((SEED / case / mode / file).read_text().splitlines()))
        pairs.append((answers(case)[mode], rows))
    return pairs


def delivered(candidate: Candidate, total_gpus: int) -> dict[str, float]:
    """Return what a row of the recordings says that a configuration delivers, and which one it is."""
    row = {
        "ttft": candidate.ttft,
        "tpot": candidate.tpot,
        "request_rate": candidate.requests_per_s,
        "tokens/s": candidate.tokens_per_s,
        "tokens/s/gpu": candidate.tokens_per_s_gpu,
        "tokens/s/user": candidate.tokens_per_s_user,
        "concurrency": candidate.concurrency,
        "num_total_gpus": candidate.gpus,
        "tokens/s/gpu_cluster": candidate.cluster_throughput(total_gpus),
    }
    prefixes = ("",) if candidate.mode == "agg" else ("(p)", "(d)")
    for prefix, workers in zip(prefixes, candidate.workers, strict=True):
        row |= {
            f"{prefix}bs": workers.batch,
            f"{prefix}tp": workers.parallel.tp,
            f"{prefix}memory": workers.memory,
        }
        if prefix:
            row |= {f"{prefix}workers": workers.count, f"{prefix}seq/s/worker": workers.requests_per_s}
        else:
            row["ctx_tokens"] = candidate.context_tokens
    return row


@pytest.mark.parametrize("case", CASES)
def test_the_frontier_is_the_recorded_one_to_the_last_digit(case: str) -> None:
    for answer, rows in recorded(case, "pareto.csv"):
        frontier = [(each.tokens_per_s_user, each.tokens_per_s_gpu) for each in answer.frontier]
        assert frontier == [(float(row["tokens/s/user"]), float(row["tokens/s/gpu"])) for row in rows]


@pytest.mark.parametrize("file", ["pareto.csv", "best_config_topn.csv"])
@pytest.mark.parametrize("case", CASES)
def test_every_recorded_configuration_is_found_with_all_its_values(case: str, file: str) -> None:
    """Where several deliver the same, the recording holds any of them."""
    for answer, rows in recorded(case, file):
        found = [delivered(each, CASES[case]) for each in answer.candidates]
        for row in rows:
            wanted = {key: float(row[key]) for key in found[0]}
            alike = [each for each in found if each["tokens/s/user"] == wanted["tokens/s/user"]]
            assert any(each == pytest.approx(wanted, rel=1e-12) for each in alike), wanted


@pytest.mark.parametrize("case", CASES)
def test_the_best_are_ranked_as_recorded(case: str) -> None:
    for answer, rows in recorded(case, "best_config_topn.csv"):
        ranked = [each.cluster_throughput(CASES[case]) for each in answer.best]
        assert ranked[: len(rows)] == pytest.approx(
            [float(row["tokens/s/gpu_cluster"]) for row in rows], rel=1e-12
        )


@cache
def tables(system: str) -> GuideTables:
    return GuideTables(
        load_system(system, era="guide"), open_tables(system, "trtllm", era="guide"), exact=True
    )


def steps() -> list[dict[str, Any]]:
    with gzip.open(FIXTURES / "aiconfigurator" / "guide-steps-0.3.0.json.gz") as file:
        return list(json.load(file)["steps"])


def worker(record: dict[str, Any]) -> Worker:
    tp, pp, dp, moe_tp, moe_ep = record["split"]
    split = Parallel(tp=tp, pp=pp, dp=dp, moe_tp=moe_tp, moe_ep=moe_ep)
    quantization = Quantization(**{key: record[key] for key in ("gemm", "moe", "kv_cache", "fmha")})
    mtp, performance = Mtp(drafted=record["drafted"]), tables(record["system"])
    graph = build_graph(
        find_model(record["model"]),
        split,
        quantization,
        system=performance.system,
        backend="trtllm",
        rules="guide",
        mtp=mtp,
    )
    return Worker(
        graph=graph,
        split=split,
        quantization=quantization,
        performance=performance,
        backend="trtllm",
        version="",
        estimator=GUIDE,
        mtp=mtp,
    )


def found(record: dict[str, Any]) -> tuple[float, ...]:
    this, load = worker(record), Load(isl=record["isl"], osl=record["osl"])
    batch, chunk = np.array([record["batch"]]), np.array([record["context_tokens"]])
    if record["step"] == "ctx":
        return float(this.prefill(batch, load.isl)[0]), float(
            this.memory(load, role="prefill", batch=batch).total[0]
        )
    if record["step"] == "gen":
        after = this.generation_total(batch, load.isl, load.osl)
        return float(after[0]), float(this.memory(load, role="decode", batch=batch).total[0])
    rates = evaluate_points(this, load, Points(batch, chunk, np.zeros(1)))
    memory = this.memory(load, role="agg", batch=batch, context_tokens=chunk).total
    return (
        float(rates.ttft[0]),
        float(rates.tpot[0]),
        float(rates.requests_per_s[0]) * (load.osl - 1),
        float(memory[0]),
    )


@pytest.mark.parametrize("system", ["h200_sxm", "b200_sxm", "gb200_sxm", "h100_sxm"])
def test_steps_of_dense_and_expert_models_are_what_was_recorded(system: str) -> None:
    records = [each for each in steps() if each["system"] == system]
    assert records
    for record in records:
        assert found(record) == pytest.approx(record["values"], rel=1e-6, abs=6e-4), record
