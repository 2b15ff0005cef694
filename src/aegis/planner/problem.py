"""What is asked of the planner: a load, targets, and which splits of a model to weigh."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from msgspec import Struct

ServingMode: TypeAlias = Literal["agg", "disagg"]
Backend: TypeAlias = Literal["trtllm", "vllm", "sglang"]
# Which figures answer: measured tables alone; the speed of light; tables as utilisation; tables, and that where they end.
DatabaseMode: TypeAlias = Literal["SILICON", "SOL", "EMPIRICAL", "HYBRID"]

BACKENDS: tuple[Backend, ...] = ("trtllm", "vllm", "sglang")


class Load(Struct, frozen=True, kw_only=True):
    """The requests: every one alike."""

    isl: int  # input tokens
    osl: int  # output tokens
    prefix: int = 0  # input tokens that the prefix cache holds already
    max_seq_len: int | None = None  # what the engine reserves KV cache for, if not isl + osl


class Targets(Struct, frozen=True, kw_only=True):
    """What a user must not wait longer than, in ms."""

    ttft: float = math.inf
    tpot: float = math.inf
    request_latency: float | None = None  # of the whole request; it replaces `tpot`
    strict: bool = False  # a configuration that misses a target is no answer


class Parallel(Struct, frozen=True, kw_only=True):
    """How one worker splits a model. For experts: tp * dp * cp = moe_tp * moe_ep."""

    tp: int = 1
    pp: int = 1
    dp: int = 1  # attention data parallel
    moe_tp: int = 1
    moe_ep: int = 1
    cp: int = 1  # context parallel, prefill only

    @property
    def gpus(self) -> int:
        """GPUs of one worker."""
        return self.tp * self.pp * self.dp * self.cp


class Quantization(Struct, frozen=True, kw_only=True):
    """Number formats, by the names of the tables: planner/quantization.py."""

    gemm: str
    moe: str
    kv_cache: str
    fmha: str
    comm: str = "half"


class WideExperts(Struct, frozen=True, kw_only=True):
    """Experts on so many GPUs, and the measured all-to-all transports that carry tokens between these."""

    gpus: int
    nodes: int
    prefill: str
    decode: str


class WorkerSearch(Struct, frozen=True, kw_only=True):
    """Workers of one kind that are weighed: where they run, their number formats and their splits."""

    system: str
    backend: Backend
    version: str | None = None  # of the tables; None: the newest
    quantization: Quantization
    splits: tuple[Parallel, ...]
    node_gpus: int | None = None  # of one node, where a platform has other nodes than the system's own
    wide: tuple[WideExperts, ...] = ()  # that were measured


class Replica(Struct, frozen=True, kw_only=True):
    """Bounds of one disaggregated replica, the smallest unit that is scaled."""

    gpus: tuple[int, ...] = (1, 2, 4, 8, *range(16, 129, 8))  # sizes that are tried
    max_gpus: int = 128  # 0: no bound
    max_prefill_workers: int = 32
    max_decode_workers: int = 32


class Tuning(Struct, frozen=True, kw_only=True):
    """Factors and bounds that a user who has measured may set."""

    prefill_correction: float | None = None  # throughput; None: what the estimator takes
    decode_correction: float | None = None
    prefill_latency: float | None = None  # step times; None: what the estimator takes
    decode_latency: float | None = None
    prefill_max_batch: int = 1
    decode_max_batch: int = 512
    free_memory_fraction: float | None = None  # of what is left for the KV cache; None: the engine's default
    chunked_prefill: bool = False


class Mtp(Struct, frozen=True, kw_only=True):
    """Multi-token prediction: tokens drafted in a step, and how often the i-th of them is accepted."""

    drafted: int = 0
    accept_rates: tuple[float, ...] = (0.85, 0.0, 0.0, 0.0, 0.0)

    @classmethod
    def accepting(cls, drafted: int, mean: float) -> Mtp:
        """Return rates of which so many of the drafted tokens are accepted in the mean: the first ones always.

        A mean that cannot be leaves a rate that cannot be.
        """
        whole = sum(mean >= number for number in range(1, drafted))
        return cls(drafted=drafted, accept_rates=(*(1.0,) * whole, mean - whole, *(0.0,) * drafted)[:drafted])

    @property
    def accepted(self) -> float:
        """Mean of accepted draft tokens in a step: the i-th only counts where all before it were accepted."""
        total, all_so_far = 0.0, 1.0
        for rate in self.accept_rates[: self.drafted]:
            all_so_far *= rate
            total += all_so_far
        return total
