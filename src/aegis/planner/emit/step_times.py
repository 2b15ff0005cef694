"""Step times of a worker as a small table, from which `aegis sim` takes them (spec/step_times.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aegis.spec.step_times import Grid, StepTimes

if TYPE_CHECKING:
    from aegis.planner.estimate.worker import Worker
    from aegis.planner.operations import Floats, Ints
    from aegis.planner.problem import Load

DIGITS = 5  # of a ms
PARTS = (64, 16, 8, 4, 3, 2, 1)  # of a prompt: the chunks for which attention is priced as that share of it
SMALL = 16  # requests


def step_times(
    worker: Worker, load: Load, *, requests: int, context_tokens: int, source: str = ""
) -> StepTimes:
    """Return the step times of a worker that batches continuously, such that tokens come as often as is planned.

    Args:
        worker: whose steps they are.
        load: the requests; it fixes for which lengths steps that prefill are priced.
        requests: at most, of one attention group and pipeline stage.
        context_tokens: of a step at most, those that the prefix cache holds included.
        source: what this is, in words.

    Raises:
        NoData: the tables cannot answer for this split.
    """
    new = load.isl - load.prefix  # what is left of a prompt to prefill
    length = load.isl + load.osl // 2 + 1
    lengths = sorted(
        {1, load.isl // 2, load.isl, length, load.isl + load.osl, 2 * (load.isl + load.osl)} - {0}
    )
    batches = _batches(requests)
    chunks = sorted(
        {-(-load.isl // part) for part in PARTS}
        | set(range(load.isl, context_tokens + 1, load.isl))
        | {context_tokens}
    )
    running, chunk = np.array([0, *batches]), np.array(chunks)[:, None]
    decode = worker.decode(running[1:, None], np.array(lengths)) * _left(worker, load, running[1:, None])
    mixed = worker.mixed(chunk, running, load) * _left(worker, load, running + -(-chunk // load.isl))
    prefilled = [max(1, round(chunk * new / load.isl)) for chunk in chunks]
    kept = [index for index, tokens in enumerate(prefilled) if tokens not in prefilled[:index]]
    return StepTimes(
        source=source,
        groups=worker.split.dp * worker.split.pp,
        context_tokens=max(1, round(context_tokens * new / load.isl)),
        tokens_per_step=worker.progress,
        decode_length=length,
        decode=_grid(batches, lengths, decode),
        mixed=_grid([prefilled[index] for index in kept], [0, *batches], np.asarray(mixed)[kept]),
    )


def _left(worker: Worker, load: Load, requests: Ints) -> Floats:
    """Return what measured deployments leave over of the TPOT, in the shape of the requests of a group."""
    if worker.residual is None:
        return np.ones(requests.shape)
    factor: Floats = worker.residual.aggregated(worker, load, requests)[1].factor
    return factor


def _batches(most: int) -> list[int]:
    """Return batch sizes: every small one, since tables have steps there, then two for each doubling."""
    doublings = range(SMALL.bit_length() - 1, most.bit_length())
    larger = {size for power in doublings for size in (2**power, 3 * 2 ** (power - 1))}
    return sorted(size for size in {*range(1, SMALL + 1), *larger, most} if size <= most)


def _grid(rows: list[int], columns: list[int], ms: Floats) -> Grid:
    whole = np.round(np.broadcast_to(ms, (len(rows), len(columns))), DIGITS)
    return Grid(rows=tuple(rows), columns=tuple(columns), ms=tuple(map(tuple, whole.tolist())))
