"""An experiment without gaps, as the file that `aegis plan exp` reads: the guide's `config.yaml`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.planner.problem import Parallel, WorkerSearch
    from aegis.planner.task import Experiment

ROLES = {"agg": ("worker_config",), "disagg": ("prefill_worker_config", "decode_worker_config")}
SIZES = ("tp", "pp", "dp", "moe_tp", "moe_ep", "cp")


def experiment_document(experiment: Experiment, backend: str) -> dict[str, Any]:
    """Return the experiment as it was resolved for one backend; every list is given, so that nothing is added."""
    search = next(each for each in experiment.searches if each[0].backend == backend)
    load, targets = experiment.load, experiment.targets
    found: dict[str, Any] = {
        "mode": "replace",
        "serving_mode": experiment.mode,
        "model_name": experiment.model_name,
        "total_gpus": experiment.total_gpus,
        "system_name": search[0].system,
        "decode_system_name": search[-1].system if experiment.mode == "disagg" else None,
        "backend_name": backend,
        "backend_version": search[0].version,
        "isl": load.isl,
        "osl": load.osl,
        "prefix": load.prefix or None,
        "max_seq_len": load.max_seq_len,
        "ttft": None if math.isinf(targets.ttft) else targets.ttft,
        "tpot": None if math.isinf(targets.tpot) else targets.tpot,
        "request_latency": targets.request_latency,
        "free_gpu_memory_fraction": experiment.tuning.free_memory_fraction,
        "database_mode": None if experiment.database_mode == "SILICON" else experiment.database_mode,
        "enable_wide_ep": experiment.wide_ep,
        "profiles": [],
        "config": _config(experiment, search),
    }
    name = experiment.name
    return {"exps": [name], name: {key: value for key, value in found.items() if value is not None}}


def _config(experiment: Experiment, search: Sequence[WorkerSearch]) -> dict[str, Any]:
    mtp = experiment.mtp
    found: dict[str, Any] = {"nextn": mtp.drafted, "nextn_accept_rates": list(mtp.accept_rates)}
    for section, workers in zip(ROLES[experiment.mode], search, strict=True):
        found[section] = _workers(workers)
    if len(search) > 1 and search[1].version != search[0].version:
        found["decode_worker_config"]["backend_version"] = search[1].version
    if experiment.mode == "disagg":
        replica, tuning = experiment.replica, experiment.tuning
        found["replica_config"] = {
            "num_gpu_per_replica": list(replica.gpus),
            "max_gpu_per_replica": replica.max_gpus,
            "max_prefill_worker": replica.max_prefill_workers,
            "max_decode_worker": replica.max_decode_workers,
        }
        tuned = {
            "prefill_correction_scale": tuning.prefill_correction,
            "decode_correction_scale": tuning.decode_correction,
            "prefill_latency_correction_scale": tuning.prefill_latency,
            "decode_latency_correction_scale": tuning.decode_latency,
            "prefill_max_batch_size": tuning.prefill_max_batch,
            "decode_max_batch_size": tuning.decode_max_batch,
        }
        found["advanced_tuning_config"] = {key: value for key, value in tuned.items() if value is not None}
    return found


def _workers(search: WorkerSearch) -> dict[str, Any]:
    """Return number formats and splits of one kind of workers."""
    formats = search.quantization
    return {
        "gemm_quant_mode": formats.gemm,
        "moe_quant_mode": formats.moe,
        "kvcache_quant_mode": formats.kv_cache,
        "fmha_quant_mode": formats.fmha,
        "comm_quant_mode": formats.comm,
        "num_gpu_per_worker": sorted({split.gpus for split in search.splits}),
        **{f"{name}_list": _sizes(name, search.splits) for name in SIZES},
    }


def _sizes(name: str, splits: Sequence[Parallel]) -> list[int]:
    return sorted({getattr(split, name) for split in splits})
