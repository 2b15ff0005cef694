"""Plans that were made by hand: what is written of them does not depend on any table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aegis.planner.answer import Candidate, ModeAnswer, Workers
from aegis.planner.emit.servers import servers_of
from aegis.planner.models.resolve import find_model
from aegis.planner.plan import Plan
from aegis.planner.problem import Load, Parallel, Quantization, Targets, WorkerSearch
from aegis.planner.task import Experiment
from tests.cli.conftest import Outcome, aegis

if TYPE_CHECKING:
    from aegis.planner.emit.servers import Server

__all__ = ["Outcome", "aegis"]  # a fixture of the command line's tests

BF16 = Quantization(gemm="bfloat16", moe="bfloat16", kv_cache="bfloat16", fmha="bfloat16")
FP8 = Quantization(gemm="fp8_block", moe="fp8_block", kv_cache="fp8", fmha="bfloat16")
LOAD = Load(isl=3000, osl=512)
VERSIONS = {"trtllm": "1.3.0rc20", "vllm": "0.24.0", "sglang": "0.5.14"}
HOSTILE = "a b'c\"d\n$(touch x);`touch y`/}{"


def workers(role: Any = "agg", backend: str = "vllm", **changes: Any) -> Workers:
    values: dict[str, Any] = {
        "role": role,
        "system": "h200_sxm",
        "backend": backend,
        "version": VERSIONS[backend],
        "parallel": Parallel(tp=4),
        "quantization": BF16,
        "batch": 48,
        "memory": 30.1,
        "requests_per_s": 5.0,
    }
    return Workers(**{**values, **changes})


def candidate(*kinds: Workers, **changes: Any) -> Candidate:
    kinds = kinds or (workers(),)
    agg = kinds[0].role == "agg"
    values: dict[str, Any] = {
        "mode": "agg" if agg else "disagg",
        "workers": kinds,
        "ttft": 254.583,
        "tpot": 18.571,
        "request_latency": 9744.0,
        "concurrency": 48,
        "requests_per_s": 4.936,
        "tokens_per_s": 2522.2,
        "tokens_per_s_gpu": 630.559,
        "tokens_per_s_user": 53.847,
        "context_tokens": 3000 if agg else 0,
    }
    return Candidate(**{**values, **changes})


def pair(backend: str = "vllm") -> Candidate:
    """Four prefill workers of one GPU for one decode worker of four."""
    prefill = workers("prefill", backend, count=4, parallel=Parallel(), batch=1)
    return candidate(prefill, workers("decode", backend, batch=64), tokens_per_s_gpu=761.0, concurrency=64)


def experiment(
    model: str = "QWEN3_32B", *answers: Candidate, backend: Any = "vllm", **changes: Any
) -> Experiment:
    chosen = answers[0] if answers else candidate()
    kinds = tuple(
        WorkerSearch(
            system=each.system,
            backend=backend,
            version=each.version,
            quantization=each.quantization,
            splits=(each.parallel,),
        )
        for each in chosen.workers
    )
    values: dict[str, Any] = {
        "name": chosen.mode,
        "mode": chosen.mode,
        "model_name": model,
        "model": find_model("QWEN3_32B" if model == HOSTILE else model),
        "total_gpus": 32,
        "load": LOAD,
        "targets": Targets(ttft=1000.0, tpot=20.0),
        "searches": (kinds,),
    }
    return Experiment(**{**values, **changes})


def plan_of(*answers: Candidate, model: str = "QWEN3_32B", backend: Any = "vllm", **changes: Any) -> Plan:
    """A plan with an experiment for each configuration."""
    experiments = tuple(experiment(model, each, backend=backend, **changes) for each in answers)
    return Plan(
        experiments=experiments,
        answers=tuple(
            ModeAnswer(name=asked.name, mode=each.mode, candidates=(each,), frontier=(each,), best=(each,))
            for asked, each in zip(experiments, answers, strict=True)
        ),
        compared=len(answers) > 1,
    )


def servers(
    chosen: Candidate | None = None, *, model: str = "org/m", backend: Any = "vllm", **changes: Any
) -> tuple[Server, ...]:
    chosen = chosen or candidate(workers(backend=backend))
    asked = experiment("QWEN3_32B", chosen, backend=backend, **changes)
    return servers_of(asked, chosen, model=model, gpus_per_node=8)
