"""Which requests of a load count, and how sure their figures are. Pure.

The first requests of a load meet an idle server and the last ones an emptying one; neither counts. The time between is cut
into slices, and the spread between slices is the noise. Latencies are those of the requests that end in a slice. A
throughput counts every request by that share of its answer, from the first token to the last, that lies in the slice: equal
requests end together, and whole ones at the edges would look like noise.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from aegis.bench.metrics import measure
from aegis.bench.records import COLUMNS, Records, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from aegis.bench.load import Outcome
    from aegis.bench.work import Work

SLICES: Final = 10  # at most, of one load
LEAST_SLICES: Final = 3  # fewer say nothing of noise
ROUNDS: Final = 2  # answers of each user in a slice of a closed loop, at least
REQUESTS: Final = 4  # of a slice of an open loop, at least
INSTANT: Final = 1e-6  # s
WARM_UP: Final = 0.1  # share of the arrivals of an open loop


class Slice(NamedTuple):
    """Some time of one server: the requests that ended in it, and what was served in it."""

    rows: Records
    seconds: float
    served: NDArray[np.float64]  # [requests, input tokens, output tokens]


def cut(work: Work, outcome: Outcome) -> list[Slice]:
    """Return the part of a load that counts, in slices; all of it where too little is left."""
    records = outcome.records
    ends = np.where(records.good, records.start + records.latency, np.inf)
    begin, end, count = _closed(records, ends, work.concurrency) if work.concurrency else _open(records)
    if not count:
        begin = float(records.start.min(initial=outcome.ended)) - INSTANT
        end, count = max(outcome.ended, begin) + INSTANT, 1
    times = np.linspace(begin, end, count + 1)
    return [_between(records, ends, low, high) for low, high in pairwise(times)]


def _closed(records: Records, ends: NDArray[np.float64], users: int) -> tuple[float, float, int]:
    """Return the time in which all users are there, after their first answers, and how many slices it makes."""
    ordered = np.sort(ends)
    end = float(records.start.max(initial=0.0))
    rounds = int((ordered <= end).sum()) // users - 1
    if rounds < 1:
        return 0.0, 0.0, 0
    return float(ordered[users - 1]), end, min(SLICES, max(rounds // ROUNDS, 1))


def _open(records: Records) -> tuple[float, float, int]:
    """Return the time after the first tenth of arrivals, and how many slices it makes."""
    starts = np.sort(records.start)
    warm = math.ceil(len(starts) * WARM_UP)
    if len(starts) - warm < REQUESTS:
        return 0.0, 0.0, 0
    return float(starts[warm]), float(starts[-1]), min(SLICES, (len(starts) - warm) // REQUESTS)


def _between(records: Records, ends: NDArray[np.float64], low: float, high: float) -> Slice:
    good = records.good
    start, end = (records.start + records.ttft)[good], ends[good]
    start = np.minimum(start, end - INSTANT)  # an answer of one token
    share = np.clip((np.minimum(end, high) - np.maximum(start, low)) / (end - start), 0.0, 1.0)
    tokens = (records.input_tokens[good], records.output_tokens[good])
    served = np.array([share.sum(), *((share * each).sum() for each in tokens)])
    return Slice(_taken(records, (ends > low) & (ends <= high)), float(high - low), served)


def _taken(records: Records, rows: NDArray[np.bool_]) -> Records:
    columns: dict[str, Any] = {name: getattr(records, name)[rows] for name in COLUMNS if name != "itl"}
    errors = tuple(error for error, wanted in zip(records.errors, rows, strict=True) if wanted)
    return Records(**columns, itl=records.itl[np.repeat(rows, records.gaps)], errors=errors)


def figures(servers: Sequence[Sequence[Slice]]) -> dict[str, float]:
    """Return the figures of several servers together: throughputs are added, requests pooled."""
    seconds = max(sum(part.seconds for part in slices) for slices in servers)
    rates = sum((_rates(slices) for slices in servers), np.zeros(3))
    pooled = measure(joined([part.rows for slices in servers for part in slices]), seconds)
    return replace(
        pooled,
        request_throughput=float(rates[0]),
        output_throughput=float(rates[2]),
        total_token_throughput=float(rates[1] + rates[2]),
    ).as_vllm()


def noise(servers: Sequence[Sequence[Slice]]) -> dict[str, float]:
    """Return the standard error of every figure; nothing where there are too few slices."""
    count = min(len(slices) for slices in servers)
    if count < LEAST_SLICES:
        return {}
    parts = [figures([[slices[index]] for slices in servers]) for index in range(count)]
    told = [part for part in parts if part["completed"]]  # latencies need requests that ended
    if len(told) < LEAST_SLICES:
        return {}
    return {
        name: float(np.std([part[name] for part in told], ddof=1)) / math.sqrt(len(told)) for name in told[0]
    }


def _rates(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """Return [requests, input tokens, output tokens] a second."""
    seconds = sum(part.seconds for part in slices)
    rates: NDArray[np.float64] = sum((part.served for part in slices), np.zeros(3)) / max(seconds, 1e-9)
    return rates
