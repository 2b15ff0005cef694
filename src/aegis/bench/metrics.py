"""Latency and throughput of measured requests, by the definitions of `vllm bench serve`. Pure.

| name | of | meaning |
|---|---|---|
| TTFT | requests | from sending to the first event with a choice |
| TPOT | requests of two tokens or more | (E2E - TTFT) / (output tokens - 1) |
| ITL | gaps | between one event and the next; events that arrive together have gaps of (nearly) nothing |
| E2E | requests | from sending to the last event with a choice |

Only requests that succeeded count, but the duration is that of all. A chat's first event names the role; it counts.
Percentiles are interpolated linearly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aegis.bench.records import Records

PERCENTILES: Final = (90, 99)
MILLI: Final = 1000.0


class Spread(Struct, frozen=True):
    """One latency in milliseconds; all 0.0 where nothing was measured, as vLLM has it."""

    mean: float = 0.0
    median: float = 0.0
    std: float = 0.0
    p90: float = 0.0
    p99: float = 0.0


class Metrics(Struct, frozen=True, kw_only=True):
    """One run against one server, or several together."""

    completed: int
    failed: int
    duration: float  # s, from the run's beginning to its last answer
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float  # 1/s
    output_throughput: float  # tokens/s
    total_token_throughput: float  # tokens/s, input and output
    ttft: Spread  # ms
    tpot: Spread  # ms
    itl: Spread  # ms
    e2el: Spread  # ms

    def as_vllm(self) -> dict[str, Any]:
        """Return the keys of the JSON file that `vllm bench serve` writes, with p90 besides p99."""
        plain = {name: value for name, value in self._fields() if not isinstance(value, Spread)}
        spreads = {
            f"{figure}_{name}_ms": getattr(spread, figure)
            for name, spread in self._fields()
            if isinstance(spread, Spread)
            for figure in Spread.__struct_fields__
        }
        return plain | spreads

    def _fields(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__]


def measure(records: Records, duration: float) -> Metrics:
    """Return what requests say, whose run took `duration` seconds."""
    good = records.good
    inputs, outputs = records.input_tokens[good], records.output_tokens[good]
    ttft, latency = records.ttft[good], records.latency[good]
    several = outputs > 1
    per_token = (latency[several] - ttft[several]) / (outputs[several] - 1)
    completed, read, written = int(good.sum()), int(inputs.sum()), int(outputs.sum())
    seconds = duration if duration > 0 else float("inf")
    return Metrics(
        completed=completed,
        failed=len(records) - completed,
        duration=duration,
        total_input_tokens=read,
        total_output_tokens=written,
        request_throughput=completed / seconds,
        output_throughput=written / seconds,
        total_token_throughput=(read + written) / seconds,
        ttft=spread(ttft),
        tpot=spread(per_token),
        itl=spread(records.itl[np.repeat(good, records.gaps)]),
        e2el=spread(latency),
    )


def spread(seconds: NDArray[np.float64]) -> Spread:
    """Return mean, median, standard deviation and percentiles in milliseconds."""
    if not len(seconds):
        return Spread()
    median, *tails = np.percentile(seconds, [50, *PERCENTILES])
    figures = [seconds.mean(), median, seconds.std(), *tails]
    return Spread(*(float(figure) * MILLI for figure in figures))
