"""Steps and memory of real models on the shipped tables, against what aiconfigurator 0.12.0 said."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aegis.planner.estimate.aggregated import rates
from aegis.planner.estimate.memory import Usage, memory
from aegis.planner.models.resolve import find_model
from aegis.planner.problem import Load, Mtp, Parallel, Quantization, Tuning
from tests.planner.estimate.built import built

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aegis.planner.estimate.worker import Worker

FILE = Path(__file__).parents[2] / "fixtures" / "aiconfigurator" / "steps-0.12.0.json.gz"
WITHIN = 3e-4  # the tables are kept to 1e-4


@cache
def recorded() -> dict[str, list[dict[str, Any]]]:
    with gzip.open(FILE) as file:
        found: dict[str, list[dict[str, Any]]] = json.load(file)
    return found


def worker_of(entry: dict[str, Any]) -> Worker:
    sizes = {"tp": entry["tp"], "cp": entry.get("cp", 1)}
    if find_model(entry["model"]).has_experts:
        sizes |= {"dp": entry["dp"], "moe_tp": entry.get("moe_tp", 1), "moe_ep": entry["ep"]}
    return built(
        entry["model"],
        Parallel(**sizes),
        Quantization(
            gemm=entry["gemm"],
            moe=entry.get("moe", entry["gemm"]),
            kv_cache=entry["kv"],
            fmha=entry["fmha"],
        ),
        system=entry["system"],
        backend=entry["backend"],
        version=entry["version"],
    )


def compared(entry: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield what was asked, what is said here, and what was recorded."""
    one = worker_of(entry)

    def of(kind: str) -> Iterator[tuple[list[str], float]]:
        return ((asked.split(","), value) for asked, value in entry.get(kind, {}).items())

    for (batch, isl, prefix), value in of("prefill"):
        yield "prefill", float(one.prefill(int(batch), int(isl), int(prefix))), value
    for (batch, isl, osl), value in of("decode"):
        yield "decode", float(one.decode(int(batch), int(isl) + int(osl) // 2 + 1)), value
    for (chunk, requests, isl, osl), value in of("mixed"):
        yield "mixed", float(one.mixed(int(chunk), int(requests), Load(isl=int(isl), osl=int(osl)))), value
    for (batch, isl, osl, mode), value in of("static"):
        prefill = float(one.prefill(int(batch), int(isl))) if mode != "static_gen" else 0
        answer = float(one.generation_total(int(batch), int(isl), int(osl))) if mode != "static_ctx" else 0
        yield mode, prefill + answer, value
    for (batch, isl, osl, tokens), value in of("memory"):
        usage = Usage(int(batch), int(isl) + int(osl), int(tokens) or int(isl) * int(batch))
        yield "memory", float(memory(one.graph, one.split, one.place, usage, 0).total), value


@pytest.mark.parametrize("experts", [False, True])
def test_steps_and_memory_are_those_that_were_recorded(experts: bool) -> None:
    away: list[tuple[object, ...]] = []
    number = 0
    for entry in recorded()["steps"]:
        if find_model(entry["model"]).has_experts is not experts:
            continue
        for kind, have, wanted in compared(entry):
            number += 1
            within = 1e-9 if kind == "memory" else WITHIN
            if abs(have / wanted - 1) > within:
                away.append(
                    (entry["system"], entry["backend"], entry["model"], entry["tp"], kind, have / wanted)
                )
    assert number > 700
    assert not away


def test_drafted_tokens_cost_and_bring_what_was_recorded() -> None:
    formats = Quantization(gemm="fp8_block", moe="fp8_block", kv_cache="fp8", fmha="bfloat16")
    mtp = Mtp(drafted=1, accept_rates=(0.85,))
    for entry in recorded()["drafting"]:
        one = built(
            "deepseek-ai/DeepSeek-V3",
            Parallel(tp=8, moe_ep=8),
            formats,
            system="h200_sxm",
            backend=entry["be"],
            version=entry["ver"],
            mtp=mtp,
        )
        load, batch, chunk = Load(isl=entry["isl"], osl=entry["osl"]), entry["b"], entry["c"]
        if chunk > 0:
            found = rates(one, load, batch, chunk)
            wanted = (entry["ttft"], entry["tpot"], entry["seq"])
            assert np.concatenate(found) == pytest.approx(np.array(wanted), rel=WITHIN)
            held, fits = one.room(load, Tuning(), role="agg", batch=batch, context_tokens=chunk)
            assert float(held) == pytest.approx(entry["mem"], rel=1e-9)
            assert bool(fits) is not entry["oom"]
        elif chunk == 0:
            # what was recorded is the time of a step
            total = float(one.generation_total(batch, load.isl, load.osl)) * one.progress
            assert total / (load.osl - 1) == pytest.approx(entry["tpot"], rel=WITHIN)
            assert float(one.room(load, Tuning(), role="decode", batch=batch)[0]) == pytest.approx(
                entry["mem"], abs=1e-3
            )
        else:
            assert float(one.prefill(batch, load.isl)) == pytest.approx(entry["ttft"], rel=WITHIN)
            assert float(one.room(load, Tuning(), role="prefill", batch=batch)[0]) == pytest.approx(
                entry["mem"], abs=1e-3
            )
