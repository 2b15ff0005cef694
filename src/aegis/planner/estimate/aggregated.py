"""Aggregated serving: what a worker delivers whose steps read prompts and answer others (planner-model, section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from aegis.planner.estimate.worker import Worker
    from aegis.planner.operations import Floats, Ints
    from aegis.planner.problem import Load

    Reals: TypeAlias = NDArray[np.floating[Any]]

# Steps at the end of a round in which the slots that came free stay empty.
_DRAIN = 3
# vLLM's host takes so many ms of each layer to start a prompt (planner-model, section 6).
_VLLM_LAYER = 0.8
# Requests that each user of a measurement sends, all users starting at once: the first ones wait for each other.
_REQUESTS = 10


class Rates(NamedTuple):
    """What points deliver: ms, and requests/s of a worker."""

    ttft: Floats
    tpot: Floats
    requests_per_s: Floats


class Round(NamedTuple):
    """How the steps follow each other in which `batch` requests are read and answered once; one element a point."""

    batch: Ints
    chunk: Ints  # prompt tokens of a mixed step
    reading: Floats  # mixed steps in which all prompts are read
    answering: float  # steps of a request from its first token to its last
    mixed: Floats  # mixed steps
    decoding: Floats  # steps without prompts
    generating: Ints  # requests that get a token in a mixed step
    counted: Floats  # mixed steps that a request is thought to decode in

    @property
    def busy(self) -> Floats:
        """Share of the steps that read prompts."""
        return np.minimum(self.reading / self.answering, 1.0)


class Times(NamedTuple):
    """ms of the steps of a round."""

    mixed: Floats
    decode: Floats
    alone: Floats  # a mixed step with one prompt only
    first: Floats  # a step of prompts before anything is answered


def rates(worker: Worker, load: Load, batch: ArrayLike, context_tokens: ArrayLike) -> Rates:
    """Return what a worker delivers that holds `batch` requests and reads so many prompt tokens in a mixed step.

    Raises:
        NoData: the tables cannot answer for this worker.
    """
    turn = _round(worker, load, np.atleast_1d(batch), np.atleast_1d(context_tokens))
    corrected = "closed-loop-ttft" in worker.estimator.corrections
    times = _times(worker, load, turn, all_kinds=corrected)
    ttft = (_closed_loop if corrected else _factored)(worker, load, turn, times)
    ttft = ttft + host_time(worker, times.decode)
    whole = turn.mixed * times.mixed + turn.decoding * times.decode
    rate = _ratio(1000.0 * turn.batch, whole)
    if "whole-round-tpot" in worker.estimator.corrections:
        tpot = _of_whole_round(worker, load, turn, times, whole)
    else:
        counted = turn.counted + turn.decoding
        tpot = _ratio(times.mixed * turn.counted + times.decode * turn.decoding, counted) / worker.progress
        if worker.backend == "vllm" and not worker.place.guide:
            # Little's law: so many requests that take so long cannot be served faster.
            rate = np.minimum(rate, _ratio(1000.0 * turn.batch, ttft + tpot * (load.osl - 1)))
    if worker.residual is not None:
        first, further = worker.residual.aggregated(worker, load, turn.batch)
        ttft, tpot = ttft * first.factor, tpot * further.factor
        rate = _ratio(1000.0 * turn.batch, ttft + tpot * (load.osl - 1))  # Little's law
    return Rates(ttft, tpot, rate * worker.split.pp * worker.split.dp)


def host_time(worker: Worker, decode: Floats) -> Floats:
    """Return ms until the scheduler looks at a new request, whose decode steps take so many; 0 by rules that have none."""
    if "host-time-in-ttft" not in worker.estimator.corrections:
        return np.zeros_like(decode)
    return worker.host.first + worker.host.waits * decode


def undisturbed(worker: Worker, load: Load, batch: Ints) -> Floats:
    """Return ms of a further token of `batch` requests, as in `Rates.tpot`, but that no prompts are read meanwhile.

    Raises:
        NoData: the tables cannot answer for this worker.
    """
    ms: Floats = worker.decode(batch, load.isl + load.osl // 2 + 1) / worker.progress
    if worker.residual is not None:
        ms = ms * worker.residual.aggregated(worker, load, batch)[1].factor
    return ms


def _of_whole_round(worker: Worker, load: Load, turn: Round, times: Times, whole: Floats) -> Floats:
    """Return ms of a further token: a request decodes in all of a round (ms) but the steps that read its own prompt.

    Where prompts come faster than answers end, every step of a request is a mixed one. Held against
    `estimate.batching`, which it meets to 0.2 % (median).
    """
    own = -(-load.isl // turn.chunk) * times.mixed
    between = (whole - own) / max(load.osl - 1, 1)
    tpot: Floats = np.where(turn.reading >= turn.answering, times.mixed / worker.progress, between)
    return tpot


def _round(worker: Worker, load: Load, batch: Ints, chunk: Ints) -> Round:
    """Return the round of a worker that holds `batch` requests; a single request is read and then answered."""
    prompts = -(-chunk // load.isl)
    reading = np.ceil(load.isl * batch / chunk)
    answering = 1 + (load.osl - 1) / worker.progress
    vllm = worker.backend == "vllm" and not worker.place.guide
    single, longer = batch == 1, reading >= answering
    generating = batch - prompts
    if not vllm:
        generating = np.where(longer, batch // (reading / answering), generating)
    counted = np.where(longer | vllm, reading, np.maximum(1, reading - _DRAIN))
    return Round(
        batch,
        chunk,
        reading,
        answering,
        mixed=np.where(single, 1.0, reading),
        decoding=np.where(single, answering - 1, np.maximum(answering - reading, 0.0)),
        generating=np.where(single, 0, np.maximum(generating, 1)).astype(np.int64),
        counted=np.where(single, 0.0, counted),
    )


def _times(worker: Worker, load: Load, turn: Round, *, all_kinds: bool) -> Times:
    """Return the times of the steps; `alone` and `first` only where they are wanted (of all kinds)."""
    decode = worker.decode(turn.batch, load.isl + load.osl // 2 + 1)
    if not all_kinds:
        mixed = worker.mixed(turn.chunk, turn.generating, load)
        return Times(mixed, decode, mixed, mixed)
    chunks = np.stack([turn.chunk, np.minimum(turn.chunk, load.isl), turn.chunk])
    requests = np.stack([turn.generating, turn.generating, np.zeros_like(turn.generating)])
    mixed, alone, first = worker.mixed(chunks, requests, load)
    return Times(mixed, decode, alone, first)


def _factored(worker: Worker, load: Load, turn: Round, times: Times) -> Floats:
    """Return ms to the first token as the step that reads a prompt, times a factor for waiting."""
    reading = times.mixed * -(-load.isl // turn.chunk)
    if worker.place.guide:
        return reading
    if worker.backend == "vllm":
        factor = np.minimum(1 + np.log2(turn.batch) / 8, 2)
        return (reading + _VLLM_LAYER * worker.graph.layers) * factor
    return reading * np.minimum(2 + (turn.reading - 3) / 20, 4)


def _closed_loop(_worker: Worker, load: Load, turn: Round, times: Times) -> Floats:
    """Return ms to the first token of users who each ask again as soon as they have their answer.

    A request waits for the step that is running, for the prompts before it, and for its own. Where prompts come faster
    than answers end, it waits for all that exceeds (Little's law). One request of `_REQUESTS` belongs to the start, when
    all users ask at once. Held against `estimate.batching`.
    """
    steps = -(-load.isl // turn.chunk)
    own = steps * times.alone
    running = turn.busy * times.mixed + (1 - turn.busy) * times.decode
    before = own * turn.busy / (2 * (1 - turn.busy) + 4 / np.sqrt(turn.batch))
    excess = (turn.reading - turn.answering) * times.mixed
    steady = own + np.where(turn.batch > 1, running + np.maximum(before, excess), 0.0)
    start = (turn.reading + steps) / 2 * times.first
    ttft: Floats = steady + (start - steady) / _REQUESTS
    return ttft


def _ratio(amount: Reals, by: Reals) -> Floats:
    """Return amount / by, 0 where there is nothing to divide by."""
    out: Floats = np.divide(amount, by, out=np.zeros(by.shape), where=by > 0)
    return out
