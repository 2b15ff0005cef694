"""Aggregated serving: what a worker delivers whose steps read prompts and answer others (docs/planner-model.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from aegis.planner.estimate.closed_loop import Times, further, ttft, turns

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from aegis.planner.estimate.worker import Worker
    from aegis.planner.operations import Floats, Ints
    from aegis.planner.problem import Load

    Reals: TypeAlias = NDArray[np.floating[Any]]

# Steps at the end of a round in which the slots that came free stay empty.
_DRAIN: Final = 3
# vLLM's host takes so many ms of each layer to start a prompt (aiconfigurator 0.12.0).
_VLLM_LAYER: Final = 0.8


class Rates(NamedTuple):
    """What points deliver: ms, and requests/s of a worker."""

    ttft: Floats
    tpot: Floats
    requests_per_s: Floats


class Round(NamedTuple):
    """How the steps follow each other in which `batch` requests are read and answered once; one element a point."""

    reading: Floats  # mixed steps in which all prompts are read
    mixed: Floats  # mixed steps
    decoding: Floats  # steps without prompts
    generating: Ints  # requests that get a token in a mixed step
    counted: Floats  # mixed steps that a request is thought to decode in


def rates(worker: Worker, load: Load, batch: ArrayLike, context_tokens: ArrayLike) -> Rates:
    """Return what a worker delivers that holds `batch` requests and reads so many prompt tokens in a mixed step.

    Raises:
        NoData: the tables cannot answer for this worker.
    """
    users, chunk = np.atleast_1d(batch), np.atleast_1d(context_tokens)
    by_events = "continuous-batching" in worker.estimator.corrections
    found = (_by_events if by_events else _by_rounds)(worker, load, users, chunk)
    if worker.residual is not None:
        first, each = worker.residual.aggregated(worker, load, users)
        found = _asked_again(load, users, found.ttft * first.factor, found.tpot * each.factor)
    return found._replace(requests_per_s=found.requests_per_s * worker.split.pp * worker.split.dp)


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


def _by_events(worker: Worker, load: Load, batch: Ints, chunk: Ints) -> Rates:
    """Return what users see who each ask again as soon as they have their answer, by a discrete-event model."""
    of = turns(batch, chunk, isl=load.isl, steps=(load.osl - 1) / worker.progress)
    several = chunk > load.isl
    # Steps are priced by whole prompts.
    most = np.where(several, -(-chunk // load.isl) * load.isl, chunk)
    requests, at_first = whole_requests(batch, of.running), whole_requests(batch, of.started)
    many, one, first = worker.mixed(
        np.stack([most, np.minimum(chunk, load.isl), most]), np.stack([requests, requests, at_first]), load
    )
    decode = worker.decode(batch, load.isl + load.osl // 2 + 1)
    # A step with fewer tokens takes in proportion between that of most and that of one prompt, or of none.
    slope = np.where(several, (many - one) / np.maximum(most - load.isl, 1), (many - decode) / most)
    filled = load.isl * batch / -(-load.isl * batch // chunk)  # tokens of a step in which all read
    times = Times(
        start=first - slope * (most - filled),
        waited=many - slope * (most - of.tokens_waited),
        mixed=many - slope * (most - of.tokens),
        decode=decode,
    )
    return _asked_again(
        load, batch, ttft(of, times) + host_time(worker, decode), further(of, times) / worker.progress
    )


def _asked_again(load: Load, batch: Ints, ttft: Floats, tpot: Floats) -> Rates:
    """Return what a group delivers whose users ask again as soon as they have their answer: Little's law."""
    return Rates(ttft, tpot, _ratio(1000.0 * batch, ttft + tpot * (load.osl - 1)))


def whole_requests(batch: Ints, requests: Floats) -> Ints:
    """Return how many requests a step is asked with: whole ones, none where there is a single user."""
    return np.where(batch > 1, np.maximum(np.rint(requests), 1), 0).astype(np.int64)


def _by_rounds(worker: Worker, load: Load, batch: Ints, chunk: Ints) -> Rates:
    """Return what follows from a round of steps and factors for waiting: the rules of aiconfigurator."""
    turn = _round(worker, load, batch, chunk)
    decode = worker.decode(batch, load.isl + load.osl // 2 + 1)
    mixed = worker.mixed(chunk, turn.generating, load)
    first = _factored(worker, batch, turn, mixed * -(-load.isl // chunk)) + host_time(worker, decode)
    rate = _ratio(1000.0 * batch, turn.mixed * mixed + turn.decoding * decode)
    counted = turn.counted + turn.decoding
    each = _ratio(mixed * turn.counted + decode * turn.decoding, counted) / worker.progress
    if worker.backend == "vllm" and not worker.place.guide:
        # Little's law: so many requests that take so long cannot be served faster.
        rate = np.minimum(rate, _asked_again(load, batch, first, each).requests_per_s)
    return Rates(first, each, rate)


def _round(worker: Worker, load: Load, batch: Ints, chunk: Ints) -> Round:
    """Return the round of a worker that holds `batch` requests; a single request is read and then answered."""
    reading = np.ceil(load.isl * batch / chunk)
    answering = 1 + (load.osl - 1) / worker.progress  # steps of a request from its first token to its last
    vllm = worker.backend == "vllm" and not worker.place.guide
    single, longer = batch == 1, reading >= answering
    generating = batch - -(-chunk // load.isl)
    if not vllm:
        generating = np.where(longer, batch // (reading / answering), generating)
    counted = np.where(longer | vllm, reading, np.maximum(1, reading - _DRAIN))
    return Round(
        reading,
        mixed=np.where(single, 1.0, reading),
        decoding=np.where(single, answering - 1, np.maximum(answering - reading, 0.0)),
        generating=np.where(single, 0, np.maximum(generating, 1)).astype(np.int64),
        counted=np.where(single, 0.0, counted),
    )


def _factored(worker: Worker, batch: Ints, turn: Round, reading: Floats) -> Floats:
    """Return ms to the first token as the steps that read a prompt, times a factor for waiting."""
    if worker.place.guide:
        return reading
    if worker.backend == "vllm":
        factor = np.minimum(1 + np.log2(batch) / 8, 2)
        return (reading + _VLLM_LAYER * worker.graph.layers) * factor
    return reading * np.minimum(2 + (turn.reading - 3) / 20, 4)


def _ratio(amount: Reals, by: Reals) -> Floats:
    """Return amount / by, 0 where there is nothing to divide by."""
    out: Floats = np.divide(amount, by, out=np.zeros(by.shape), where=by > 0)
    return out
