"""What the client takes and returns: vec-inf's classes, with their fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from aegis.spec.catalog.entry import CatalogEntry as ModelConfig

if TYPE_CHECKING:
    from aegis.fleet.status import JobView

RUNNING = ("LAUNCHING", "READY")  # a scheduler has one word for both


class ModelStatus(str, Enum):  # noqa: UP042 - as vec-inf's: str() shows the name of the class
    """How a model's servers are; UNAVAILABLE is the UNKNOWN of `aegis status`."""

    PENDING = "PENDING"
    LAUNCHING = "LAUNCHING"
    READY = "READY"
    FAILED = "FAILED"
    SHUTDOWN = "SHUTDOWN"
    UNAVAILABLE = "UNAVAILABLE"

    @classmethod
    def _missing_(cls, value: object) -> ModelStatus | None:
        return cls.UNAVAILABLE if value == "UNKNOWN" else None


class ModelType(str, Enum):  # noqa: UP042 - as above
    """What a model is for; a site's environment.yaml may have further types, which become members when they are met."""

    LLM = "LLM"
    VLM = "VLM"
    TEXT_EMBEDDING = "Text_Embedding"
    REWARD_MODELING = "Reward_Modeling"
    OCR = "OCR"
    AUDIO = "Audio"

    @classmethod
    def _missing_(cls, value: object) -> ModelType | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_, member._value_ = value.upper().replace("-", "_"), value
        cls._value2member_map_[value] = member
        return member


@dataclass
class LaunchResponse:
    """A model that was launched."""

    slurm_job_id: str  # of whichever scheduler
    model_name: str
    config: dict[str, Any]
    raw_output: str = field(repr=False)


@dataclass
class BatchLaunchResponse:
    """Models that were launched as one job; the server of model k is `<slurm_job_id>+k`."""

    slurm_job_id: str
    slurm_job_name: str
    model_names: list[str]
    config: dict[str, Any]
    raw_output: str = field(repr=False)


@dataclass
class StatusResponse:
    """How a job is."""

    model_name: str
    log_dir: str
    server_status: ModelStatus
    job_state: str | ModelStatus  # PENDING, RUNNING, or how it ended
    raw_output: str = field(repr=False)  # everything that `aegis status ID --json` shows
    base_url: str | None = None
    pending_reason: str | None = None
    failed_reason: str | None = None
    job_id: str = ""  # handle; this and the next are ours
    reason: str = ""  # in words, whatever the state

    @classmethod
    def of(cls, view: JobView) -> StatusResponse:
        """Return the status of a job as `aegis status` knows it."""
        return cls(
            model_name=view.model_name,
            log_dir=view.run_dir,
            server_status=ModelStatus(view.model_status),
            job_state="RUNNING" if view.model_status in RUNNING else view.model_status,
            raw_output=msgspec.json.encode(view).decode(),
            base_url=view.base_url,
            pending_reason=view.pending_reason,
            failed_reason=view.failed_reason,
            job_id=view.job_id,
            reason=view.reason,
        )


@dataclass
class MetricsResponse:
    """What the servers of a job do at present, or why nobody knows."""

    model_name: str
    metrics: dict[str, float] | str
    timestamp: float  # epoch seconds


@dataclass
class ModelInfo:
    """A model of the catalog."""

    name: str
    family: str
    variant: str | None
    model_type: ModelType
    config: dict[str, Any]

    @classmethod
    def of(cls, entry: ModelConfig) -> ModelInfo:
        """Return an entry of the catalog."""
        config = entry.as_config()
        del config["model_name"]
        kind = ModelType(entry.model_type)
        return cls(entry.model_name, entry.model_family, entry.model_variant, kind, config)


@dataclass
class LaunchOptions:
    """What a launch wants otherwise than the catalog says."""

    model_family: str | None = None
    model_variant: str | None = None
    partition: str | None = None
    resource_type: str | None = None
    num_nodes: int | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_per_node: str | None = None
    account: str | None = None
    work_dir: str | None = None
    qos: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    bind: str | None = None  # comma list
    time: str | None = None
    vocab_size: int | None = None  # shown in the response, as vec-inf does
    data_type: str | None = None  # without effect, as in vec-inf: `--dtype` is an argument of the engine
    venv: str | None = None
    log_dir: str | None = None
    model_weights_parent_dir: str | None = None
    hf_model: str | None = None
    engine: str | None = None
    vllm_args: str | None = None
    sglang_args: str | None = None
    env: str | None = None  # NAME=VALUE,NAME=VALUE or files
    config: str | None = None  # file of models to use instead of the catalog


__all__ = [
    "BatchLaunchResponse",
    "LaunchOptions",
    "LaunchResponse",
    "MetricsResponse",
    "ModelConfig",
    "ModelInfo",
    "ModelStatus",
    "ModelType",
    "StatusResponse",
]
