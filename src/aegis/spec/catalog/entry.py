"""What a file may say of a model: the keys of vec-inf's `models.yaml`, in the order of its JSON."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from aegis.spec.check import field_types
from aegis.spec.deployment import EngineName  # noqa: TC001 - msgspec reads the annotations

Count: TypeAlias = Annotated[int, Meta(ge=1)]

TYPES = ("LLM", "VLM", "Text_Embedding", "Reward_Modeling", "OCR", "Audio")
REQUIRED = ("model_family", "model_type", "gpus_per_node", "num_nodes")
ENGINE_ARGS = ("vllm_args", "sglang_args")
# What vec-inf takes for granted where no file says anything; shown as it shows it, and applied nowhere: the platform knows.
ASSUMED: dict[str, Any] = {
    "cpus_per_task": 16,
    "mem_per_node": "64G",
    "time": "08:00:00",
    "resource_type": "l40s",
    "exclude": "",
    "nodelist": "",
    "bind": "$SLURM_TMPDIR:$HOME/.cache",
    "model_weights_parent_dir": "/model-weights",
    "engine": "vllm",
}
UNSHOWN = ("venv", "log_dir")


class CatalogEntry(Struct, frozen=True, kw_only=True):
    """One model of the catalog."""

    model_name: str
    model_family: str
    model_variant: str | None = None
    model_type: str
    gpus_per_node: Count
    num_nodes: Count
    cpus_per_task: Count | None = None
    mem_per_node: str | None = None
    vocab_size: Count | None = None
    account: str | None = None
    work_dir: str | None = None
    qos: str | None = None
    time: str | None = None
    partition: str | None = None
    resource_type: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    bind: str | None = None
    venv: str | None = None
    log_dir: str | None = None
    model_weights_parent_dir: str | None = None
    hf_model: str | None = None
    engine: EngineName | None = None
    vllm_args: dict[str, Any] = {}
    sglang_args: dict[str, Any] = {}
    env: dict[str, str | None] = {}
    context_length: Count | None = None  # ours: tokens that the model itself can read; vec-inf passes over it

    @property
    def served_context(self) -> int | None:
        """Tokens that its servers read, unless they are told otherwise."""
        limit = self.engine_args.get("--context-length" if self.engine == "sglang" else "--max-model-len")
        return limit if isinstance(limit, int) else self.context_length

    @property
    def engine_args(self) -> dict[str, Any]:
        """What its engine is told; a simulated one stands for vLLM."""
        return self.sglang_args if self.engine == "sglang" else self.vllm_args

    def as_config(self) -> dict[str, Any]:
        """Return the model as vec-inf's `list MODEL --json-mode` has it; what only we know follows, where it is known."""
        values = msgspec.to_builtins(self)
        shown = {
            key: ASSUMED.get(key) if value is None else value
            for key, value in values.items()
            if key not in UNSHOWN
        }
        if self.context_length is None:
            del shown["context_length"]
        return shown


FIELDS = {name: type_ for name, type_ in field_types(CatalogEntry).items() if name != "model_name"}
# The same with every field optional: what one file says of a model, checked in one step.
Partial: type[Struct] = msgspec.defstruct(
    "Partial",
    [(name, type_ | None, None) for name, type_ in FIELDS.items()],
    forbid_unknown_fields=True,
)
