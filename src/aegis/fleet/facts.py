"""What is told of a launch of catalog models, under vec-inf's keys and in their order; what is not known is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aegis.runs import endpoints_path, file_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.schedulers.base import Component
    from aegis.spec.resolve import Resolved


def launch_json(resolved: Resolved, component: Component, handle: str) -> dict[str, Any]:
    """Return a launch as vec-inf's `launch --json-mode` has it: every value as text, but for mappings."""
    facts = model_json(resolved, component, handle)
    texts = {key: value if isinstance(value, dict) else str(value) for key, value in facts.items()}
    return {**texts, "slurm_job_id": handle.partition("://")[2]}


def batch_json(
    name: str, resolved: Sequence[Resolved], components: Sequence[Component], handle: str
) -> dict[str, Any]:
    """Return a batch launch as vec-inf's `batch-launch --json-mode` has it."""
    first = resolved[0].deployment
    models: dict[str, Any] = {}
    for number, (each, component, own) in enumerate(
        zip(resolved, components, handles_of(handle, len(components)), strict=True)
    ):
        facts = {**model_json(each, component, own), "het_group_id": number, "job_id": own}
        models[facts["model_name"]] = facts
    return {
        "slurm_job_name": name,
        "account": first.account,
        "work_dir": first.work_dir,
        "models": models,
        "slurm_job_id": handle.partition("://")[2],
        "job_id": handle,
    }


def handles_of(handle: str, count: int) -> list[str]:
    """Return the handle of each component of a job."""
    return [handle] if count == 1 else [f"{handle}+{number}" for number in range(count)]


def model_json(resolved: Resolved, component: Component, handle: str) -> dict[str, Any]:
    """Return what is known of a launch of one model."""
    entry, deployment, asked = resolved.entry, resolved.deployment, component.resources
    model = deployment.models[0]
    if entry is None:
        raise TypeError("only a model of the catalog has vec-inf's keys")
    stem = f"{component.stem}.{file_id(handle)}"
    folder = f"{component.folder}/{stem}"
    weights = model.model_source
    device = ":".join(filter(None, ("gpu", asked.device_type, str(asked.devices))))
    facts = {
        "model_name": entry.model_name,
        "model_family": entry.model_family,
        "model_variant": entry.model_variant,
        "model_type": entry.model_type,
        "gpus_per_node": asked.devices,
        "num_nodes": asked.nodes,
        "cpus_per_task": asked.cpus,
        "mem_per_node": asked.memory,
        "vocab_size": entry.vocab_size,
        "account": asked.account,
        "work_dir": deployment.work_dir,
        "qos": asked.qos,
        "time": asked.walltime,
        "partition": asked.queue,
        "resource_type": asked.device_type,
        "exclude": asked.exclude or "",
        "nodelist": asked.nodelist or "",
        "bind": ",".join(deployment.bind),
        "venv": deployment.image or deployment.venv or deployment.conda_env,
        "log_dir": component.folder,
        "model_weights_parent_dir": weights.rpartition("/")[0] if weights else None,
        "hf_model": entry.hf_model,
        "engine": model.engine,
        "env": model.env,
        "engine_args": entry.engine_args,
        "gres": device if asked.devices and asked.device_option != "none" else None,
        "out_file": f"{folder}/{stem}.out",
        "err_file": f"{folder}/{stem}.err",
        "json_file": f"{folder}/{stem}.json",
        "endpoints_file": endpoints_path(component.endpoints_file, handle, folder),
    }
    return {key: value for key, value in facts.items() if value is not None}
