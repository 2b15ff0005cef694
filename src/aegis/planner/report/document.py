"""Configurations as rows with the columns of the guide's tables: for JSON, CSV and data frames."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec import to_builtins

from aegis.planner.answer import interval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis.planner.answer import Candidate, Workers
    from aegis.planner.problem import Load, Parallel
    from aegis.planner.task import Experiment

Row: TypeAlias = dict[str, Any]

_DIGITS = 3  # as candidates are ranked
_SPREADS: Final = {"tokens_per_s_gpu": "spread", "ttft": "ttft_spread", "tpot": "tpot_spread"}


def rows(experiment: Experiment, candidates: Iterable[Candidate]) -> list[Row]:
    """Return one row for each configuration, in their order. Times in ms, memory in GiB of one GPU.

    `tokens/s/gpu` is of one replica, `tokens/s/gpu_cluster` of all GPUs, those that stay idle too. A configuration whose
    intervals are known ends with their columns: `_low` and `_high` of a figure, and `measured`.
    """
    of_mode = _agg if experiment.mode == "agg" else _disagg
    return [{**of_mode(experiment, each), **_known(each)} for each in candidates]


def builtins(value: Any) -> Any:
    """Return structs as they are shown in JSON: intervals in place of spreads, and nothing of those that are not known."""
    return _with_intervals(to_builtins(value))


def _with_intervals(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_with_intervals(each) for each in value]
    if not isinstance(value, dict):
        return value
    shown = {name: _with_intervals(each) for name, each in value.items()}
    if not _SPREADS.keys() | set(_SPREADS.values()) <= shown.keys():
        return shown
    spreads = {name: shown.pop(spread) for name, spread in _SPREADS.items()}
    measured = shown.pop("measured")
    if not spreads["tokens_per_s_gpu"]:
        return shown
    bounds = [_bounds(name, shown[name], spread) for name, spread in spreads.items()]
    return {**shown, **{key: each for bound in bounds for key, each in bound.items()}, "measured": measured}


def _known(candidate: Candidate) -> Row:
    if not candidate.spread:
        return {}
    return {
        **_bounds("tokens/s/gpu", candidate.tokens_per_s_gpu, candidate.spread),
        **_bounds("ttft", candidate.ttft, candidate.ttft_spread),
        **_bounds("tpot", candidate.tpot, candidate.tpot_spread),
        "measured": candidate.measured,
    }


def _bounds(name: str, value: float, spread: float) -> Row:
    low, high = interval(value, spread)
    return {f"{name}_low": round(low, _DIGITS), f"{name}_high": round(high, _DIGITS)}


def split_name(parallel: Parallel) -> str:
    """Return a split as the other tool writes it: tp4pp1dp1etp1ep1; context parallelism only where there is any."""
    context = f"cp{parallel.cp}" if parallel.cp > 1 else ""
    width = f"etp{parallel.moe_tp}ep{parallel.moe_ep}"
    return f"tp{parallel.tp}pp{parallel.pp}dp{parallel.dp}{width}{context}"


def _agg(experiment: Experiment, candidate: Candidate) -> Row:
    workers = candidate.workers[0]
    return {
        **_question(experiment),
        "concurrency": candidate.concurrency,
        "request_rate": candidate.requests_per_s,
        **_batch(workers),
        **_delivered(candidate),
        "num_total_gpus": candidate.gpus,
        **_split(workers),
        **_place(workers),
        **_step(experiment.load, workers.batch, candidate.context_tokens),
        **_engine(workers),
        **_cluster(experiment, candidate),
    }


def _disagg(experiment: Experiment, candidate: Candidate) -> Row:
    prefill, decode = candidate.workers
    return {
        **_question(experiment),
        "concurrency": candidate.concurrency,
        "request_rate": candidate.requests_per_s,
        **_prefixed("(p)", {**_batch(prefill), "workers": prefill.count}),
        **_prefixed("(d)", {**_batch(decode), "workers": decode.count}),
        **_delivered(candidate),
        "(p)seq/s/worker": prefill.requests_per_s,
        "(d)seq/s/worker": decode.requests_per_s,
        "num_total_gpus": candidate.gpus,
        **_prefixed("(p)", {**_split(prefill), **_place(prefill), **_engine(prefill)}),
        **_prefixed("(d)", {**_split(decode), **_place(decode), **_engine(decode)}),
        **_cluster(experiment, candidate),
    }


def _question(experiment: Experiment) -> Row:
    load = experiment.load
    return {"model": experiment.model_name, "isl": load.isl, "osl": load.osl, "prefix": load.prefix}


def _delivered(candidate: Candidate) -> Row:
    return {
        "ttft": candidate.ttft,
        "tpot": candidate.tpot,
        "request_latency": candidate.request_latency,
        "seq/s": candidate.requests_per_s,
        "seq/s/gpu": round(candidate.tokens_per_s_gpu / _tokens(candidate), _DIGITS),
        "tokens/s": candidate.tokens_per_s,
        "tokens/s/gpu": candidate.tokens_per_s_gpu,
        "tokens/s/user": candidate.tokens_per_s_user,
    }


def _tokens(candidate: Candidate) -> int:
    """Return the output tokens that are counted of a request: osl, or all but the first."""
    return max(round(candidate.tokens_per_s / candidate.requests_per_s), 1) if candidate.requests_per_s else 1


def _batch(workers: Workers) -> Row:
    return {"bs": workers.batch, "global_bs": workers.batch * workers.parallel.dp}


def _split(workers: Workers) -> Row:
    split = workers.parallel
    sizes = {name: getattr(split, name) for name in ("tp", "pp", "dp", "moe_tp", "moe_ep", "cp")}
    return {**sizes, "parallel": split_name(split)}


def _place(workers: Workers) -> Row:
    formats = workers.quantization
    return {
        "gemm": formats.gemm,
        "kvcache": formats.kv_cache,
        "fmha": formats.fmha,
        "moe": formats.moe,
        "comm": formats.comm,
        "memory": workers.memory,
    }


def _step(load: Load, batch: int, chunk: int) -> Row:
    """Return what one mixed step holds (planner-model, section 6)."""
    prompts = math.ceil(chunk / load.isl)
    balance = load.isl * batch / chunk / load.osl if chunk else 0.0  # time to read over time to answer
    generating = batch - prompts
    return {
        "balance_score": round(balance, _DIGITS),
        "num_ctx_reqs": float(prompts),
        "num_gen_reqs": float(max(generating, 1)),
        "num_tokens": float(chunk + generating),
        "ctx_tokens": chunk,
        "gen_tokens": float(max(generating, 1)),
    }


def _engine(workers: Workers) -> Row:
    return {"backend": workers.backend, "version": workers.version, "system": workers.system}


def _cluster(experiment: Experiment, candidate: Candidate) -> Row:
    whole = candidate.cluster_throughput(experiment.total_gpus)
    return {"tokens/s/gpu_cluster": round(whole, _DIGITS)}


def _prefixed(prefix: str, values: Row) -> Row:
    return {f"{prefix}{name}": value for name, value in values.items()}
