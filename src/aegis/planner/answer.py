"""What the planner answers: configurations with what they deliver, ranked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from aegis.planner.problem import Parallel, Quantization, ServingMode

Role = Literal["agg", "prefill", "decode"]

_OF_80_PERCENT: Final = 1.2816  # standard deviations to either side that hold 80 % of a normal distribution


def interval(value: float, spread: float) -> tuple[float, float]:
    """Return between what a figure lies with 80 % probability, by the standard deviation of its logarithm."""
    factor = math.exp(_OF_80_PERCENT * spread)
    return value / factor, value * factor


def spread_of_sum(one: float, other: float, spread: float, other_spread: float) -> float:
    """Return the standard deviation of the logarithm of a sum, from those of its two parts, which err independently."""
    share = one / (one + other)
    return math.hypot(share * spread, (1 - share) * other_spread)


class Workers(Struct, frozen=True, kw_only=True):
    """Equal workers of one replica."""

    role: Role
    count: int = 1  # in a replica
    system: str
    backend: str
    version: str
    parallel: Parallel
    quantization: Quantization
    batch: int  # largest batch of one attention group; a worker holds batch * dp requests (agg: * pp too)
    memory: float  # GiB of one GPU
    requests_per_s: float  # of one worker, before any rate matching

    @property
    def gpus(self) -> int:
        """GPUs of these workers in a replica."""
        return self.count * self.parallel.gpus


class Candidate(Struct, frozen=True, kw_only=True):
    """One configuration of one replica and what it delivers; floats rounded to 3 decimals, as they are ranked."""

    mode: ServingMode
    workers: tuple[Workers, ...]  # agg: one; disagg: prefill, decode
    ttft: float  # ms
    tpot: float  # ms
    request_latency: float  # ms
    concurrency: int  # requests that one replica holds
    requests_per_s: float  # of one replica
    tokens_per_s: float  # output tokens of one replica
    tokens_per_s_gpu: float
    tokens_per_s_user: float
    context_tokens: int = 0  # agg: prefill tokens of a mixed step
    estimated: bool = False
    spread: float = 0.0  # standard deviation of the logarithm of tokens_per_s_gpu; 0: not known
    ttft_spread: float = 0.0
    tpot_spread: float = 0.0
    measured: int = 0  # deployments of this model, system and engine behind it
    notes: tuple[str, ...] = ()

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return sum(each.gpus for each in self.workers)

    def replicas(self, total_gpus: int) -> int:
        """Whole replicas that fit."""
        return total_gpus // self.gpus

    def cluster_throughput(self, total_gpus: int) -> float:
        """Output tokens/s of each of all GPUs, those that stay idle too."""
        return self.tokens_per_s_gpu * self.replicas(total_gpus) * self.gpus / total_gpus


class ModeAnswer(Struct, frozen=True, kw_only=True):
    """What one experiment found."""

    name: str  # of the experiment: "agg", "disagg", or as its file calls it
    mode: ServingMode
    candidates: tuple[Candidate, ...] = ()  # all that were kept
    frontier: tuple[Candidate, ...] = ()  # not dominated in (tokens/s/user, tokens/s/gpu); by tokens/s/user
    best: tuple[Candidate, ...] = ()  # ranked, at most top_n
    meets_targets: bool = True  # False: `best` holds the nearest that are met
    why_none: str | None = None  # why `best` is empty or misses the targets, with figures
    notes: tuple[str, ...] = ()  # tables that contradict their neighbours, estimated systems
