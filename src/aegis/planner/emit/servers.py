"""What an engine is told of the workers of a plan: sizes, limits, formats; the same for every engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from aegis.planner.answer import Candidate, Role, Workers
    from aegis.planner.problem import Parallel
    from aegis.planner.task import Experiment

BLOCK = 32  # tokens of a KV-cache block; limits of tokens are multiples of it
# A request is longer than planned by what a chat template adds; engines that read whole prompts refuse the rest.
HEADROOM = 512


class Server(Struct, frozen=True, kw_only=True):
    """Equal workers as an engine is told of them. Tokens and requests are those of one attention group."""

    model: str  # what the engine loads: a Hugging Face id, or a directory
    role: Role
    system: str
    backend: str
    version: str
    split: Parallel
    count: int  # in a replica
    gpus_per_node: int
    experts: bool = False
    max_requests: int
    context_tokens: int  # of a step, at most
    step_tokens: int  # of a step, decoding requests included
    whole_prompts: bool = False  # prompts are not cut into chunks
    max_length: int  # of a sequence
    requantize: str | None = None  # format that the checkpoint does not have; None: as the checkpoint is
    kv_cache: str = "bfloat16"
    cached_prefix: int = 0  # tokens
    drafted: int = 0  # by multi-token prediction
    memory_fraction: float | None = None
    transfer_tokens: int = 0  # of a KV cache that travels to another worker

    @property
    def gpus(self) -> int:
        """GPUs of one worker."""
        return self.split.gpus

    @property
    def nodes(self) -> int:
        """Nodes that one worker spans."""
        return -(-self.gpus // self.gpus_per_node)

    @property
    def config_file(self) -> str:
        """Name of the file with its settings."""
        return f"{self.role}_config.yaml"


def servers_of(
    experiment: Experiment, candidate: Candidate, *, model: str, gpus_per_node: int
) -> tuple[Server, ...]:
    """Return the workers of a replica as engines are told of them; `model` is what they load."""
    return tuple(_server(experiment, candidate, each, model, gpus_per_node) for each in candidate.workers)


def _server(
    experiment: Experiment, candidate: Candidate, workers: Workers, model: str, gpus_per_node: int
) -> Server:
    load, shape = experiment.load, experiment.model
    stages = workers.parallel.pp if workers.role == "agg" else 1  # each stage has a batch of its own
    requests = workers.batch * stages
    decoding = 0 if workers.role == "prefill" else requests * (1 + experiment.mtp.drafted)
    context = {"agg": candidate.context_tokens, "prefill": workers.batch * load.isl + HEADROOM, "decode": 0}
    context_tokens = context[workers.role]
    made_of = shape.checkpoint.moe if shape.has_experts else shape.checkpoint.gemm
    wanted = workers.quantization.moe if shape.has_experts else workers.quantization.gemm
    return Server(
        model=model,
        role=workers.role,
        system=workers.system,
        backend=workers.backend,
        version=workers.version,
        split=workers.parallel,
        count=workers.count,
        gpus_per_node=gpus_per_node,
        experts=shape.has_experts,
        max_requests=requests,
        context_tokens=context_tokens,
        step_tokens=round_up(context_tokens + decoding),
        whole_prompts=workers.role != "decode" and not experiment.tuning.chunked_prefill,
        max_length=max_length(experiment),
        requantize=None if wanted == made_of else wanted,
        kv_cache=workers.quantization.kv_cache,
        cached_prefix=load.prefix,
        drafted=experiment.mtp.drafted,
        memory_fraction=experiment.tuning.free_memory_fraction,
        transfer_tokens=0 if workers.role == "agg" else round_up(load.isl + load.osl + HEADROOM),
    )


def max_length(experiment: Experiment) -> int:
    """Return the tokens of the longest sequence: what was planned and some more, as far as the model goes."""
    load = experiment.load
    wanted = load.max_seq_len or round_up(load.isl + load.osl + HEADROOM)
    context = experiment.model.context
    return max(min(wanted, context), load.isl + load.osl) if context else wanted


def round_up(tokens: int) -> int:
    """Return the next multiple of a block."""
    return -(-tokens // BLOCK) * BLOCK
