"""One configuration by simulation, step by step with the time of each: what a plan takes from means of all steps.

It knows what plans do not: answers as uneven as a user's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from aegis.errors import ConfigError
from aegis.planner.estimate.aggregated import host_time
from aegis.planner.estimate.batching import Engine, TabulatedTimes, simulate

if TYPE_CHECKING:
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.problem import Load

_AT_ONCE: Final = 1e-3  # ms: the next request comes within the step after an answer, as plans take it
MOST_REQUESTS: Final = 4096  # of a group: a step is looked up for each number of them


class Simulated(Struct, frozen=True, kw_only=True):
    """What users see of a worker, means."""

    uneven: float  # answers are up to this share shorter or longer
    ttft: float  # ms
    tpot: float  # ms
    tokens_per_s_gpu: float


def simulated(worker: Worker, load: Load, *, batch: int, context_tokens: int, uneven: float) -> Simulated:
    """Return what users see who ask again as soon as they have their answer, ten times each, all starting at once.

    Args:
        worker: whose steps are taken, with what measured deployments say of the whole.
        load: prompts and answers; those are evenly spread around `osl`.
        batch: requests of an attention group.
        context_tokens: prompt tokens of a step.
        uneven: share of its length that an answer is shorter or longer at most.

    Raises:
        ConfigError: too many requests.
        NoData: the tables cannot answer for this worker.
    """
    if batch > MOST_REQUESTS:
        raise ConfigError(
            f"--simulate: {batch} requests, of at most {MOST_REQUESTS}", hint="take a smaller --batch"
        )
    engine = Engine(
        users=batch,
        context_tokens=context_tokens,
        turnaround=_AT_ONCE,
        spread=uneven,
        progress=worker.progress,
    )
    times = TabulatedTimes(worker, load, users=batch, context_tokens=context_tokens)
    seen, requests = simulate(engine, times, load), np.array([batch])
    decode = worker.decode(requests, load.isl + load.osl // 2 + 1)
    ttft, tpot = seen.ttft + float(host_time(worker, decode)[0]), seen.tpot
    if worker.residual is not None:
        first, further = worker.residual.aggregated(worker, load, requests)
        ttft, tpot = ttft * float(first.factor[0]), tpot * float(further.factor[0])
    groups = worker.split.dp * worker.split.pp
    tokens = 1000 * batch * groups * load.osl / (ttft + tpot * (load.osl - 1))  # Little's law
    return Simulated(uneven=uneven, ttft=ttft, tpot=tpot, tokens_per_s_gpu=tokens / worker.split.gpus)
